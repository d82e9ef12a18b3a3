"""Resolves a user's MODEL to a loaded model; combines export and runtime.

A bundle is opened directly. A .gguf file is run directly: `export` builds graphs in memory and `runtime` opens them. A
checkpoint is exported once by `cached_export` to the user's cache, and opened there. So every command that runs a model
accepts every kind of MODEL.
"""

from __future__ import annotations

import os
import warnings
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ouro_edge.bundle.batched_graphs import BatchedGraphs
from ouro_edge.bundle.bundle import SLOT_COUNTS, Bundle
from ouro_edge.bundle.directory import MANIFEST_FILE, is_bundle, open_bundle
from ouro_edge.errors import OuroEdgeError, RequestError, one_line
from ouro_edge.export.checkpoint import is_gguf
from ouro_edge.prefill_weights import discard_prefill_copy, prefill_copy_for
from ouro_edge.runtime.checks import check_whole
from ouro_edge.runtime.options import Gate, GgufWeights, KVShare, KVType, LoadOptions, PrefillWeights, from_old_prefill
from ouro_edge.system.cache_dir import discard_entry, older_entries
from ouro_edge.system.hub import resolve
from ouro_edge.system.progress import Progress

if TYPE_CHECKING:
    from ouro_edge.runtime.model import Model

MAX_LOOPS = 64
MAX_PARALLEL = 64  # more threads wait for a place in the next call


def load(
    model: str | os.PathLike[str] | None = None,
    *,
    threads: int | None = None,
    kv: KVType = "auto",
    kv_share: KVShare = "none",
    context: int | None = None,
    gate: Gate = "auto",
    prefill_weights: PrefillWeights = "auto",
    parallel: int = 1,
    tokenizer: str | os.PathLike[str] | None = None,
    gguf_weights: GgufWeights = "auto",
    loops: int | None = None,
    state_noise: int | None = None,
    progress: Progress | None = None,
    prefill: str | None = None,
) -> Model:
    """Load a model: an exported directory, a checkpoint directory, a .gguf file or a hub id; None: the built-in one.

    `threads` defaults to the number of CPUs that this process may use. A checkpoint is first exported to int4 in the
    cache, which takes a minute for 1.4B parameters; `progress` is called meanwhile. `kv` is the type of the KV cache:
    fp32, int8, int4, or auto, which selects int8 if 4096 positions in float32 need more than a quarter of the free
    memory. `kv_share="last"` uses one cache for all loops: a quarter of the memory, but outputs are not exact.
    `context` limits the number of positions. `gate="original"` ignores a fitted gate. `prefill_weights` (auto, int8,
    none) is for long prompts, see `ouro_edge.prefill_weights`; `prefill` (auto, fast, lean) is its old name. With
    `parallel` above 1, generations of up to that many threads (16 at most) share calls, which read the weights once for
    all; the free memory must hold that many sequences of 512 tokens. `tokenizer` is a tokenizer.json, or a directory
    with one, for a .gguf file without a tokenizer that can be used. `gguf_weights` (auto, exact, int8) is for tensors
    of a .gguf file whose type has no codes, such as F16 and BF16: exact runs them in float32, int8 as Q8_0, and auto in
    float32 if that takes at most 2 GB and a quarter of the free memory. `loops` above the number in the model's config
    is possible, although it was not trained for that, with a float32 cache. `state_noise` is the seed of a random first
    state, in models that are trained with one (Raven); without it that state is zero. Raises kinds of OuroEdgeError.
    """
    from ouro_edge.runtime.backend.admission import check_parallel
    from ouro_edge.runtime.open_model import open_model

    if prefill is not None:
        prefill_weights = from_old_prefill(prefill)
        warnings.warn("prefill is now prefill_weights: int8 for fast, none for lean", DeprecationWarning, stacklevel=2)
    LoadOptions(  # reports wrong values before a conversion that takes a minute
        threads=threads, kv=kv, kv_share=kv_share, context=context, gate=gate, prefill_weights=prefill_weights,
        tokenizer=None if tokenizer is None else os.fspath(tokenizer), gguf_weights=gguf_weights,
        state_noise=state_noise,
    )  # fmt: skip
    if progress is not None and not callable(progress):
        raise RequestError(f"progress is {one_line(progress)}; expected a function or None")
    check_whole("parallel", parallel, 1, MAX_PARALLEL)
    bundle = open_model_files(resolve_model(model, progress), tokenizer, gguf_weights)
    bundle = bundle if context is None else bundle.with_context(context)
    bundle = bundle if state_noise is None else bundle.with_state_noise(state_noise)
    if loops is not None and check_whole("loops", loops, 1, MAX_LOOPS) > bundle.config.most_loops:
        if kv not in ("auto", "fp32"):
            raise RequestError(f"keys and values were measured for {bundle.config.loops} loops: use --kv fp32 for more")
        bundle, kv = bundle.with_loops(loops), "fp32"
    prefill_copy = prefill_copy_for(bundle, prefill_weights, progress)
    loaded = open_model(
        bundle,
        threads=threads,
        kv=kv,
        kv_share=kv_share,
        gate=gate,
        prefill_copy=prefill_copy,
        batched=_batched(bundle, parallel, progress),
        progress=progress,
    )
    try:
        check_parallel(loaded.config, loaded.kv, kv_share, parallel)  # now that the weights are part of what is used
    except RequestError:
        loaded.close()
        raise
    return loaded


def _batched(bundle: Bundle, parallel: int, progress: Progress | None) -> BatchedGraphs | None:
    """What makes the graphs for several generations at once; None for one, or in an app without the exporter."""
    if parallel <= 1:
        return None
    try:
        from ouro_edge.export.batched_block import batched_graphs
    except ImportError:  # an app may ship without onnx: generations then alternate call by call
        return None

    slots = next((count for count in SLOT_COUNTS if count >= parallel), SLOT_COUNTS[-1])
    return batched_graphs(bundle, slots, progress)


def resolve_model(model: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """The exported directory or .gguf file of MODEL; a checkpoint is exported first."""
    found = resolve(named_or_built_in(model), progress=progress)
    if is_gguf(found.path) or is_bundle(found.path):
        return found.path
    from ouro_edge.cached_export import cached_export

    made = cached_export(found, progress)
    for old in older_entries(made):  # of an earlier revision, or of files that have changed since
        with suppress(OuroEdgeError):  # one that cannot be opened has no prefill copy that could be found
            discard_prefill_copy(open_bundle(old))
        discard_entry(old)
    return made


def named_or_built_in(model: str | os.PathLike[str] | None) -> str | os.PathLike[str]:
    """MODEL, or the built-in model for None. RequestError when this build has none."""
    if model is None and (model := default_model()) is None:
        raise RequestError("this build has no built-in model: name an exported directory, a .gguf file or a hub id")
    return model


def open_model_files(
    path: Path, tokenizer: str | os.PathLike[str] | None = None, gguf_weights: GgufWeights = "auto"
) -> Bundle:
    """Open the result of `resolve_model`. RequestError for options that are not for a directory."""
    if is_gguf(path):
        from ouro_edge.export.gguf.gguf_bundle import open_gguf_bundle

        exact = None if gguf_weights == "auto" else gguf_weights == "exact"
        return open_gguf_bundle(path, None if tokenizer is None else Path(tokenizer).expanduser(), exact)
    if gguf_weights != "auto":
        raise RequestError(
            f"gguf_weights is for a GGUF file only; the number format of {path} was chosen by its export"
        )
    if tokenizer is not None:
        raise RequestError(f"a tokenizer can be given for a GGUF file only; {path} has its own files: omit it")
    return open_bundle(path)


def default_model() -> Path | None:
    """The built-in model of the package; None in a build without it."""
    path = Path(__file__).parent / "nano"
    return path if (path / MANIFEST_FILE).is_file() else None
