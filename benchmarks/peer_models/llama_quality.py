"""Quality of llama.cpp's files by its own tools: llama-quantize, llama-imatrix and llama-perplexity."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import ouro_edge
from peer_models.install import build_llama_cpp

TOOLS = ("llama-quantize", "llama-imatrix", "llama-perplexity")
Figures = dict[str, Any]

# What llama-perplexity --kl-divergence prints, with the names of our own figures.
PRINTED = {
    "perplexity": r"Mean PPL\(Q\)\s*:\s*([\d.]+)",
    "kl": r"Mean\s+KLD:\s*([-\d.]+)",
    "median": r"Median\s+KLD:\s*([-\d.]+)",
    "percentile_99": r"99\.0%\s+KLD:\s*([-\d.]+)",
    "same_top": r"Same top p:\s*([\d.]+)",
}


class Llama:
    """llama.cpp's tools, on the weights of the checkpoint `source`; files are kept in `work`."""

    def __init__(self, tools: Path, source: Path, work: Path, say: Callable[[str], None]) -> None:
        build_llama_cpp(tools, TOOLS, say)
        self.tools, self.work = tools.resolve(), work
        self.floats, self.base, self.imatrix = (self.work / name for name in ("off.gguf", "off.base", "off.imatrix"))
        package = resources.files("ouro_edge")
        self.text, self.mix = package / "evaluation" / "held_out.txt", package / "fitting" / "calibration_mix.txt"
        if not self.floats.is_file():
            ouro_edge.export(source, self.floats, precision="f32")
        if not self.imatrix.is_file():
            self.run("llama-imatrix", "-m", self.floats, "-f", self.mix, "-o", self.imatrix, "-t", 1)
        if not self.base.is_file():
            partial = self.base.with_suffix(".partial")
            self.perplexity(self.floats, "--kl-divergence-base", partial)
            partial.rename(self.base)

    def run(self, tool: str, *arguments: object) -> str:
        """Its output; SystemExit with the end of it when it fails."""
        command = list(map(str, (self.tools / tool, *arguments)))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"error: {' '.join(command)} failed:\n{(done.stdout + done.stderr)[-2000:]}")
        return done.stdout + done.stderr

    def perplexity(self, file: Path, *arguments: object) -> str:
        return self.run("llama-perplexity", "-m", file, "-f", self.text, "-c", 512, "-t", 1, *arguments)

    def quantize(self, kind: str, importance: bool) -> Path:
        """The file of one of its types."""
        out = self.work / f"llama-{kind}{'-imatrix' if importance else ''}.gguf"
        if not out.is_file():
            given = ("--imatrix", self.imatrix) if importance else ()
            self.run("llama-quantize", *given, self.floats, out, kind, 1)
        return out

    def measure(self, file: Path) -> Figures:
        """What llama-perplexity says of a file, run by llama.cpp."""
        text = self.perplexity(file, "--kl-divergence-base", self.base, "--kl-divergence")
        return printed(text)

    def plain(self, file: Path) -> float:
        """The perplexity alone, as users of llama-perplexity see it."""
        return final_estimate(self.perplexity(file))


def printed(text: str) -> Figures:
    """Figures in the output of llama-perplexity --kl-divergence."""
    found = {name: re.search(pattern, text) for name, pattern in PRINTED.items()}
    if missing := [name for name, match in found.items() if match is None]:
        raise SystemExit(f"error: llama-perplexity printed no {', '.join(missing)}:\n{text[-1000:]}")
    figures = {name: float(match[1]) for name, match in found.items() if match}
    return figures | {"same_top": figures["same_top"] / 100}


def final_estimate(text: str) -> float:
    """The perplexity in the output of llama-perplexity."""
    match = re.search(r"Final estimate: PPL = ([\d.]+)", text)
    if match is None:
        raise SystemExit(f"error: llama-perplexity printed no estimate:\n{text[-1000:]}")
    return float(match[1])
