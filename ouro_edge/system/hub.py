"""Resolves a user-supplied MODEL to a local path. Uses huggingface_hub; must not open models.

    resolve("out/ouro-int4")                    an existing directory or file takes precedence
    resolve("ByteDance/Ouro-1.4B")              a hub id: the snapshot in the hub's cache, downloaded if needed
    resolve("owner/name:model-Q4_0.gguf")       one GGUF file of a repository; or owner/name/model-Q4_0.gguf

Only hub ids use the network. HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN and the cache variables work as in huggingface_hub;
its telemetry is off. Pickles and code (.bin, .pt, .py) are never downloaded.
"""

from __future__ import annotations

import errno
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

from ouro_edge.errors import HubError, RequestError, one_line
from ouro_edge.system.progress import Progress

CHECKPOINT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "chat_template.jinja",
    "ouro_edge.json",
    "exit_gate.json",
    "kv_ranges.json",
    "kv_ranges.npy",
    "README.md",
    "*.safetensors.index.json",
    "*.safetensors",
    "*.onnx",
    "*.onnx.data",
)
_CHECKPOINT_WEIGHTS = (".safetensors",)
_BUNDLE_WEIGHTS = (".onnx", ".onnx.data")

_NAME_PART = r"[A-Za-z0-9_][\w.-]*"
REPO_ID = re.compile(rf"{_NAME_PART}/{_NAME_PART}", re.ASCII)
_FILE_INREPO_ID = re.compile(rf"({_NAME_PART}/{_NAME_PART})[:/]((?:[^/\\:\0]+/)*[^/\\:\0]+\.gguf)", re.ASCII | re.I)
_PATH = re.compile(r"[./~]|[A-Za-z]:|.*\\|.*/.*/|.*\.gguf$", re.DOTALL | re.IGNORECASE)
_UNRESOLVED = "neither a directory nor a .gguf file nor a hub id such as ByteDance/Ouro-1.4B"


@dataclass(frozen=True, slots=True)
class Resolved:
    """The local path of a model, and for a model from the hub its repository and commit."""

    path: Path
    repo_id: str | None = None
    revision: str | None = None  # the downloaded commit hash, whichever branch or tag was requested


def resolve(
    model: str | os.PathLike[str], *, revision: str | None = None, progress: Progress | None = None
) -> Resolved:
    """The local path of a directory, a file or a hub id; a hub id is downloaded unless it is cached.

    `revision` is a branch, tag or commit of a hub id. `progress` is called with bytes while a repository is downloaded,
    as far as huggingface_hub reports them; without it, a terminal shows the hub's own bars.
    HubError when the model does not exist or cannot be downloaded; RequestError for a revision of a local path.
    """
    if not isinstance(model, (str, os.PathLike)):
        raise RequestError(f"model is {one_line(repr(model))}; expected a path or a hub id")
    text = os.fspath(model)
    path = Path(os.path.expanduser(text))
    if text and os.path.exists(path):
        if revision is not None:
            raise RequestError(f"{text} is a local path, for which revision {revision!r} has no effect; leave it out")
        return Resolved(path)
    if not isinstance(model, str):
        raise HubError(f"{text} does not exist; give a directory or a .gguf file, or a hub id as a string")
    if (chosen := _FILE_INREPO_ID.fullmatch(text)) and _may_be_remote(text, chosen[2]):
        return _from_hub(chosen[1], chosen[2], revision, progress)
    if _PATH.match(text) or not REPO_ID.fullmatch(text):
        raise HubError(f"{text!r} is {_UNRESOLVED}; check the spelling")
    return _from_hub(text, None, revision, progress)


def _may_be_remote(text: str, file: str) -> bool:
    """A mistyped local path also has a slash before the file; a path below an existing directory is local."""
    safe = not {"", ".", ".."} & set(file.split("/"))
    return safe and (":" in text or (text.count("/") == 2 and not os.path.isdir(text.split("/")[0])))


def _from_hub(repo: str, file: str | None, revision: str | None, progress: Progress | None) -> Resolved:
    # Without it, huggingface_hub fetches a list of agents and reports which one runs it. Read once, at its import.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    import huggingface_hub
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True  # in case it was imported earlier
    try:
        if file is not None:
            download: Any = huggingface_hub.hf_hub_download
            takes_bars = "tqdm_class" in signature(download).parameters  # in newer versions only
            bars = {"tqdm_class": _bar_class(progress)} if takes_bars else {}
            path = Path(download(repo, file, revision=revision, **bars))
            return Resolved(path, repo, path.parents[file.count("/")].name)
        path = _snapshot(repo, revision, progress)
    except HubError:
        raise
    except Exception as problem:  # two HTTP libraries and a cache raise errors of their own
        raise HubError(_explain(problem, repo, file, revision)) from problem
    return Resolved(path, repo, path.name)


def _snapshot(repo: str, revision: str | None, progress: Progress | None) -> Path:
    """Folder of the snapshot. Small files are fetched first: they tell a bundle from a checkpoint, or neither."""
    import huggingface_hub

    def fetch(names: list[str], at: str | None) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=at, allow_patterns=names, ignore_patterns=["*/*"], tqdm_class=_bar_class(progress)
            )
        )

    weights = _CHECKPOINT_WEIGHTS + _BUNDLE_WEIGHTS
    path = fetch([name for name in CHECKPOINT_FILES if not name.endswith(weights)], revision)
    if not (path / "config.json").exists():
        raise HubError(f"{repo} has no config.json, so it is not a supported model; name a GGUF file in it as "
                       f"{repo}:FILE.gguf")  # fmt: skip
    kind = _BUNDLE_WEIGHTS if (path / "ouro_edge.json").exists() else _CHECKPOINT_WEIGHTS
    large = [name for name in CHECKPOINT_FILES if name.endswith(kind)]
    fetch(large, path.name)
    if not any(any(path.glob(name)) for name in large):
        raise HubError(f"{repo} has none of {', '.join(large)}; weights in other formats are not supported")
    return path


def _bar_class(progress: Progress | None) -> Any:
    """The class of the hub's progress bars: its own on a terminal, else a silent one that reports to `progress`."""
    from huggingface_hub.utils.tqdm import tqdm

    if progress is None and sys.stderr is not None and sys.stderr.isatty():
        return tqdm
    one_call = threading.Lock()  # files are downloaded by several threads

    class SilentBar(tqdm):
        def __init__(self, *args: Any, **options: Any) -> None:
            # Newer versions count bytes twice: as they come over the network, and as they are written.
            self._counts = options.get("unit") == "B" and not str(options.get("name")).endswith(".transfer")
            self._bytes = options.get("initial") or 0
            super().__init__(*args, **(options | {"disable": True}))  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts and progress is not None:
                with one_call:
                    self._bytes += n or 0
                    progress(int(self._bytes), int(max(self.total or 0, self._bytes)), "download")
            return None

    return SilentBar


def _explain(problem: Exception, repo: str, file: str | None, revision: str | None) -> str:
    """A one-line message for any download failure: what happened and what to do next."""
    from huggingface_hub import constants, errors

    what = f"{repo}:{file}" if file else repo
    chain = list(_causes(problem))
    statuses = [status for error in chain if (status := getattr(getattr(error, "response", None), "status_code", None))]
    if isinstance(problem, errors.HFValidationError):
        return f"{repo!r} is {_UNRESOLVED}; check the spelling"
    if any(isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT) for e in chain):
        return f"no space left for {what} in {constants.HF_HUB_CACHE}; free space or set HF_HOME to a larger disk"
    if isinstance(problem, OSError) and problem.filename is not None:  # a local error, not a network error
        return f"{what} cannot be stored in {constants.HF_HUB_CACHE} ({problem}); make it writable or set HF_HOME"
    if isinstance(problem, errors.GatedRepoError):
        return (
            f"{repo} is gated: request access at {constants.ENDPOINT}/{repo}, then run `hf auth login` or set HF_TOKEN"
        )
    if isinstance(problem, errors.RevisionNotFoundError):
        return f"{repo} has no revision {revision!r}; give a branch, a tag or a full commit hash, or omit it"
    if isinstance(problem, errors.RepositoryNotFoundError):
        return (
            f"{repo} is neither a local directory nor a public model at {constants.ENDPOINT}: "
            "check the spelling, or log in with `hf auth login` if it is private"
        )
    if constants.HF_HUB_OFFLINE and isinstance(problem, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        return f"{what} is incomplete in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE is set; unset it once to download"
    if isinstance(problem, errors.EntryNotFoundError) and not isinstance(problem, errors.LocalEntryNotFoundError):
        return f"{repo} has no file {file!r}; see {constants.ENDPOINT}/{repo}/tree/main for its files"
    if 401 in statuses or 403 in statuses:
        return f"{constants.ENDPOINT} denied this login access to {what}; check HF_TOKEN or run `hf auth login`"
    if statuses:
        return f"{constants.ENDPOINT} answered the request for {what} with HTTP status {statuses[0]}; try again later"
    detail = one_line(chain[-1], 200) or type(chain[-1]).__name__
    return f"{what} cannot be fetched from {constants.ENDPOINT} ({detail}); check the network and try again"


def _causes(problem: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, outermost first."""
    seen: set[int] = set()
    while problem is not None and id(problem) not in seen:
        seen.add(id(problem))
        yield problem
        problem = problem.__cause__ or problem.__context__
