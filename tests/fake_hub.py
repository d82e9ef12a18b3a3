"""A loopback server that imitates the endpoints of the hub that huggingface_hub uses."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "beef"
WEIGHTS = bytes(range(256)) * 64
LARGE = WEIGHTS * 700  # 11.5 MB, more than the 10 MB that huggingface_hub writes at a time
REPOS: dict[str, dict[str, bytes]] = {
    "org/tiny": {
        "config.json": b"{}",
        "tokenizer.json": b'{"model": {}}',
        "model.safetensors": WEIGHTS,
        "model.onnx": b"an onnx file beside safetensors",
        "pytorch_model.bin": b"pickle",
        "optimizer.pt": b"pickle",
        "modeling_ouro.py": b"raise SystemExit",
        "onnx/config.json": b"of another export",
        "original/model.safetensors": b"a second copy",
    },
    "org/bundle": {
        "config.json": b"{}",
        "ouro_edge.json": b"{}",
        "model.onnx": b"graph",
        "model.onnx.data": WEIGHTS[:4096],
        "exit_gate.json": b"{}",
        "kv_ranges.json": b"{}",
        "kv_ranges.npy": b"numbers",
        "model.safetensors": b"what the bundle was made of",
    },
    "org/large": {"config.json": b"{}", "model.safetensors": LARGE},
    "org/pickled": {"config.json": b"{}", "pytorch_model.bin": b"pickle"},
    "org/ggufs": {"README.md": b"# GGUF", "tiny-Q4_0.gguf": WEIGHTS[:1000], "q8/tiny-Q8_0.gguf": WEIGHTS[:2000]},
}


class FakeHub(ThreadingHTTPServer):
    """Serves REPOS; remembers what was asked; `cut` drops the next connection near the end of a large file."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.log: list[tuple[str, str, str | None]] = []  # method, path, Range
        self.agents: set[str] = set()
        self.cut = False
        self.status: int | None = None  # answers everything with this
        self.thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def stop(self) -> None:
        if self.thread.is_alive():
            self.shutdown()
            self.thread.join()
        self.server_close()

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        got = [path for method, path, _ in self.log if method == "GET" and "/resolve/" in path]
        return {path.split("/resolve/")[1].split("/", 1)[1] for path in got}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path).lstrip("/")
        self.server.log.append((self.command, path, self.headers.get("Range")))
        self.server.agents.add(self.headers.get("User-Agent", ""))
        if self.server.status is not None:
            return self.refuse(self.server.status, None)
        api = path.startswith("api/models/")
        owner, name, *rest = path.removeprefix("api/models/").split("/")
        repo = f"{owner}/{name}"
        if repo == "org/gated":
            return self.refuse(401, "GatedRepo")
        if repo not in REPOS:
            return self.refuse(404 if owner == "org" else 401, "RepoNotFound")
        if len(rest) > 1 and rest[1] not in ("main", COMMIT):
            return self.refuse(404, "RevisionNotFound")
        if api and rest[:1] == ["tree"]:
            return self.send_json([self.entry(file, data) for file, data in REPOS[repo].items()])
        if api:
            siblings = [{"rfilename": file} for file in REPOS[repo]]
            return self.send_json({"_id": "0", "id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings})
        file = "/".join(rest[2:])
        if rest[0] != "resolve" or file not in REPOS[repo]:
            return self.refuse(404, "EntryNotFound")
        self.send_file(REPOS[repo][file])

    def entry(self, file: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def send_json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def send_file(self, data: bytes) -> None:
        etag, start, span = hashlib.sha256(data).hexdigest(), 0, self.headers.get("Range")
        if span:
            start = int(span.removeprefix("bytes=").split("-")[0])
        self.send_response(206 if span else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.cut and data is LARGE:
            self.server.cut, self.close_connection = False, True
            self.wfile.write(data[:11_000_000])
            self.wfile.flush()
            return
        self.wfile.write(data[start:])

    def refuse(self, status: int, code: str | None) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()
