"""From a bundle to a loaded model: chooses gate and KV type, opens the graphs, reads the text files."""

from __future__ import annotations

from pathlib import Path

from ouro_edge.bundle.batched_graphs import BatchedGraphs
from ouro_edge.bundle.bundle import Bundle
from ouro_edge.bundle.fitted_gate import choose_gate
from ouro_edge.runtime.backend.kv_choice import check_share, choose_kv
from ouro_edge.runtime.backend.onnx_backend import OnnxBackend
from ouro_edge.runtime.model import Model
from ouro_edge.runtime.text.model_text import read_model_text
from ouro_edge.system.progress import Progress


def open_model(
    bundle: Bundle,
    *,
    threads: int | None = None,
    kv: str = "auto",
    kv_share: str = "none",
    gate: str = "auto",
    prefill_copy: Path | None = None,
    parallel_packing: bool = True,
    open_head: bool = True,
    batched: BatchedGraphs | None = None,
    progress: Progress | None = None,
) -> Model:
    """Open a bundle with onnxruntime. The options are those of `ouro_edge.load`; errors are OuroEdgeError's kinds.

    Without `parallel_packing`, weights are packed one after the other: half the peak memory, twice the time. Without
    `open_head`, the model computes states but no logits. `batched` makes graphs for several groups in one call.
    """
    fitted = choose_gate(bundle, gate)
    chosen, reason = choose_kv(bundle, kv)
    share = check_share(kv_share) == "last"
    backend = OnnxBackend(
        bundle,
        threads=threads,
        gate=fitted,
        kv=chosen,
        share_kv=share,
        prefill_copy=prefill_copy,
        parallel_packing=parallel_packing,
        open_head=open_head,
        batched=batched,
        progress=progress,
    )
    return Model(backend, read_model_text(bundle), gate=fitted, kv_reason=reason)
