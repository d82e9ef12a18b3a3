"""From what a user types to a path. The hub is the loopback server of `fake_hub.py`.

huggingface_hub reads its environment when it is imported, so whatever meets the server runs in a process of its own:
that also shows that HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are honoured.
"""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, LARGE, REPOS, WEIGHTS, FakeHub

from ouro_edge.errors import HubError, RequestError
from ouro_edge.system import hub


@pytest.fixture
def server() -> Iterator[FakeHub]:
    fake = FakeHub()
    yield fake
    fake.stop()


DRIVER = """
import json, os, sys
if os.environ.get("IMPORT_HUB_FIRST"):
    import huggingface_hub.constants
from ouro_edge.system import hub
from ouro_edge.errors import OuroEdgeError
calls = json.loads(sys.argv[1])
answers, reports = [], []
report = {"progress": lambda *call: reports.append(call)} if os.environ.get("REPORT") else {}
for model, keywords in calls:
    try:
        got = hub.resolve(model, **keywords, **report)
        answers.append([str(got.path), got.repo_id, got.revision])
    except OuroEdgeError as problem:
        answers.append(f"{type(problem).__name__}: {problem}")
print(json.dumps(answers))
if report:
    print(json.dumps(reports), file=sys.stderr)
"""


def resolve(
    home: Path, endpoint: str, *calls: str | tuple[str, dict[str, Any]], **settings: str
) -> tuple[list[Any], str]:
    """`hub.resolve` in a new process: a list for a Resolved or a text for an error for each call, and stderr."""
    dropped = ("HF_", "HUGGING", "TRANSFORMERS_", "DO_NOT_TRACK", "DISABLE_TELEMETRY")
    env = {k: v for k, v in os.environ.items() if not k.startswith(dropped) and not k.lower().endswith("_proxy")}
    env |= {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    env |= {"PYTHONPATH": str(Path(hub.__file__).parents[2])} | settings
    asked = [call if isinstance(call, tuple) else (call, {}) for call in calls]
    command = [sys.executable, "-W", "error", "-c", DRIVER, json.dumps(asked)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd=home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), done.stderr


def files_in(folder: str) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def test_checkpoint_comes_whole_without_pickles_and_code(server: FakeHub, tmp_path: Path) -> None:
    [answer], stderr = resolve(tmp_path, server.url, "org/tiny")
    path, repo, revision = answer
    assert (repo, revision) == ("org/tiny", COMMIT)
    wanted = {"config.json", "tokenizer.json", "model.safetensors"}
    assert files_in(path) == {name: REPOS["org/tiny"][name] for name in wanted}
    assert server.fetched() == wanted
    assert "Fetching" not in stderr and "\r" not in stderr  # a pipe gets no progress bars
    assert Path(path).is_relative_to(tmp_path)


def test_bundle_comes_without_the_checkpoint_beside_it(server: FakeHub, tmp_path: Path) -> None:
    [answer], _ = resolve(tmp_path, server.url, ("org/bundle", {"revision": "main"}))
    measured = {"exit_gate.json", "kv_ranges.json", "kv_ranges.npy"}
    assert set(files_in(answer[0])) == {"config.json", "ouro_edge.json", "model.onnx", "model.onnx.data", *measured}
    assert "model.safetensors" not in server.fetched()


@pytest.mark.parametrize("first", ["", "1"])
def test_nothing_but_the_model_is_asked_of_the_hub(server: FakeHub, tmp_path: Path, first: str) -> None:
    """huggingface_hub itself would ask for a list of agents and tell what it found; an app may have imported it."""
    resolve(tmp_path, server.url, "org/tiny", AI_AGENT="somebody", IMPORT_HUB_FIRST=first)
    assert server.log and all("org/tiny" in path for _, path, _ in server.log)
    assert not any("agent/" in agent or "torch/" in agent or "somebody" in agent for agent in server.agents)


def test_second_call_needs_no_server(server: FakeHub, tmp_path: Path) -> None:
    [first], _ = resolve(tmp_path, server.url, "org/tiny")
    sent = len(server.log)
    [offline], _ = resolve(tmp_path, server.url, "org/tiny", HF_HUB_OFFLINE="1")
    assert offline == first and len(server.log) == sent
    server.stop()
    answers, _ = resolve(tmp_path, server.url, "org/tiny", ("org/tiny", {"revision": COMMIT}))
    assert answers == [first, first]  # unreachable is not fatal either when the cache has it


def test_download_goes_on_after_a_cut(server: FakeHub, tmp_path: Path) -> None:
    server.cut = True
    [answer, again], _ = resolve(tmp_path, server.url, "org/large", "org/large")
    if isinstance(answer, str):  # huggingface_hub below 1.0 leaves the second attempt to the user
        assert answer.startswith("HubError: org/large cannot be fetched") and "try again" in answer
        answer = again
    assert files_in(answer[0])["model.safetensors"] == LARGE
    spans = [span for method, path, span in server.log if method == "GET" and path.endswith("model.safetensors")]
    assert len(spans) == 2 and spans[0] is None and spans[1] is not None
    assert 10_000_000 < int(spans[1].removeprefix("bytes=").split("-")[0]) < len(LARGE)


@pytest.mark.parametrize("model", ["org/large", "org/ggufs:q8/tiny-Q8_0.gguf"])
def test_downloads_report_their_progress(server: FakeHub, tmp_path: Path, model: str) -> None:
    """huggingface_hub below 1.0 reports no bytes to us."""
    _, stderr = resolve(tmp_path, server.url, model, REPORT="1")
    reports = json.loads(stderr)  # and nothing else: no bar is drawn
    assert reports or version("huggingface_hub").startswith("0.")
    assert all(0 <= done <= total and what == "download" for done, total, what in reports)
    assert not reports or reports[-1][0] == reports[-1][1] >= (len(LARGE) if model == "org/large" else 2000)


def test_gguf_files_are_chosen_by_name(server: FakeHub, tmp_path: Path) -> None:
    answers, _ = resolve(tmp_path, server.url, "org/ggufs:tiny-Q4_0.gguf", "org/ggufs/tiny-Q4_0.gguf",
                         "org/ggufs:q8/tiny-Q8_0.gguf", "org/ggufs:missing.gguf", "org/ggufs")  # fmt: skip
    assert answers[0] == answers[1] and answers[0][1:] == ["org/ggufs", COMMIT]
    assert Path(answers[0][0]).read_bytes() == WEIGHTS[:1000] and Path(answers[0][0]).name == "tiny-Q4_0.gguf"
    assert Path(answers[2][0]).read_bytes() == WEIGHTS[:2000] and answers[2][2] == COMMIT
    assert answers[3].startswith("HubError: org/ggufs has no file 'missing.gguf'")
    assert answers[4] == ("HubError: org/ggufs has no config.json, so it is not a supported model; "
                          "name a GGUF file in it as org/ggufs:FILE.gguf")  # fmt: skip
    assert server.fetched() == {"tiny-Q4_0.gguf", "q8/tiny-Q8_0.gguf", "README.md"}


def test_refusals_say_what_to_do(server: FakeHub, tmp_path: Path) -> None:
    answers, _ = resolve(tmp_path, server.url, "org/none", "private/none", "org/gated", "org/gated:x.gguf",
                         ("org/tiny", {"revision": "v9"}), "org/pickled", "org/double--dash")  # fmt: skip
    missing, private, gated, gated_file, revision, pickled, weird = answers
    assert missing.startswith("HubError: org/none is neither a local directory nor a public model at http://127.0.0.1")
    assert private.startswith("HubError: private/none is neither a local directory") and "auth login" in private
    assert gated.startswith(f"HubError: org/gated is gated: request access at {server.url}/org/gated")
    assert gated_file == gated
    assert revision.startswith("HubError: org/tiny has no revision 'v9'")
    assert pickled.startswith("HubError: org/pickled has none of *.safetensors")
    assert weird.startswith("HubError: 'org/double--dash' is neither")
    assert not any("\n" in answer for answer in answers)


def test_offline_and_unreachable(server: FakeHub, tmp_path: Path) -> None:
    calls = ("org/tiny", "org/ggufs:tiny-Q4_0.gguf")
    offline, _ = resolve(tmp_path, server.url, *calls, HF_HUB_OFFLINE="1")
    assert server.log == []
    assert all("HF_HUB_OFFLINE is set" in answer and "\n" not in answer for answer in offline)
    assert offline[1].startswith("HubError: org/ggufs:tiny-Q4_0.gguf is incomplete in")
    server.status = 403
    [refused], _ = resolve(tmp_path, server.url, "org/tiny")
    assert refused.startswith(f"HubError: {server.url} denied this login access to org/tiny") and "\n" not in refused
    server.stop()
    [unreachable], _ = resolve(tmp_path, server.url, "org/tiny")
    assert unreachable.startswith(f"HubError: org/tiny cannot be fetched from {server.url} (")
    assert "check the network" in unreachable and "\n" not in unreachable


def test_cache_that_cannot_be_written(server: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory", encoding="utf-8")
    [answer], _ = resolve(tmp_path, server.url, "org/tiny", HF_HUB_CACHE=str(tmp_path / "file"))
    assert answer.startswith(f"HubError: org/tiny cannot be stored in {tmp_path / 'file'} (") and "\n" not in answer


def test_full_disk_is_named() -> None:
    from huggingface_hub import constants

    try:
        raise RuntimeError("download failed") from OSError(errno.ENOSPC, "No space left on device")
    except RuntimeError as problem:
        line = hub._explain(problem, "org/tiny", None, None)
    assert line.startswith(f"no space left for org/tiny in {constants.HF_HUB_CACHE}; free space")


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever imports huggingface_hub fails."""
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)


@pytest.mark.usefixtures("no_network")
def test_what_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    assert hub.resolve("org/tiny") == hub.Resolved(Path("org/tiny"))
    assert hub.resolve("model.gguf").path == Path("model.gguf")
    assert hub.resolve(tmp_path / "model.gguf") == hub.Resolved(tmp_path / "model.gguf", None, None)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert hub.resolve("~/org").path == tmp_path / "org"
    with pytest.raises(RequestError, match="org/tiny is a local path, for which revision 'main' has no effect"):
        hub.resolve("org/tiny", revision="main")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    "model",
    ["", " ", "ouro", "./out", "../out", "/no/such", "~/no/such", "C:model", "C:\\models\\ouro", "out\\ouro", "a/b/c",
     "model.gguf", "dir/model.gguf", "a/b/c/d.gguf", "models/ouro/tiny.gguf", "org/tiny:Q4_0", "org/tiny:../x.gguf",
     "org/tiny:/x.gguf", "org/..", "-org/tiny", "org/tiny\n", "org/ti ny", "org/tïny", "https://huggingface.co/org/tiny",
     "org/tiny\0", "x" * 5000],
)  # fmt: skip
def test_what_is_no_hub_id_stays_off_the_network(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()  # so that models/ouro/tiny.gguf is a path with a typing error
    with pytest.raises(HubError, match=r"is neither a directory nor a .gguf file nor a hub id"):
        hub.resolve(model)


@pytest.mark.usefixtures("no_network")
def test_a_path_object_is_never_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HubError, match="does not exist; give a directory"):
        hub.resolve(Path("org") / "tiny")
