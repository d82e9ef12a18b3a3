"""Plain-text tables and sizes for the terminal. Returns text; must not print."""

from __future__ import annotations

from collections.abc import Sequence

from ouro_edge.bundle.manifest import Manifest


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with aligned columns: the first on the left, the others on the right."""
    lines = [list(head), *map(list, rows)]
    first, *widths = (max(len(line[i]) for line in lines) for i in range(len(head)))
    return "\n".join(
        "  ".join([line[0].ljust(first), *(cell.rjust(w) for cell, w in zip(line[1:], widths, strict=True))]).rstrip()
        for line in lines
    )


def error_table(manifest: Manifest) -> str:
    """A table of the quantisation error of each tensor."""
    rows = []
    for name, tensor in manifest.tensors.items():
        if tensor.scheme is not None and tensor.error is not None:
            snr = tensor.error["snr_db"]
            rows.append((
                printable(name), "x".join(map(str, tensor.shape)),
                f"int{tensor.scheme.bits}/{tensor.scheme.block_size}",
                f"{tensor.error['max_error']:.5f}", f"{tensor.error['rms_error']:.6f}",
                "exact" if snr is None else f"{snr:.1f} dB",
            ))  # fmt: skip
    if not rows:
        return "no tensor is quantised"
    return table(("tensor", "shape", "format", "max error", "RMS error", "SNR"), rows)


def printable(text: str) -> str:
    """The text on one line with control characters escaped, since names come from untrusted files."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def file_size(count: float) -> str:
    """A size in readable units: 812 MB, 1.23 GB."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count:.0f} bytes"
