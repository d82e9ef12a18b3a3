"""Installs the peers from PyPI in separate environments, and creates their models. Uses pip and cmake, and no network
address except PyPI's.

llama.cpp is built from the source in llama-cpp-python's package, with llama-bench and llama-batched-bench, for this
machine's instructions (published wheels use at most AVX2, which would be unfair). OpenVINO is installed from wheels;
optimum-intel converts its model.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peer_models.random_gguf import Shape, write_gguf

LLAMA_CPP = "llama-cpp-python==0.3.36"
# The newest that optimum-intel exports Ouro with; its torchvision would be the one for another torch.
OPENVINO = ("torch==2.13.0", "optimum-intel[openvino]==2.2.0", "transformers==4.57.6")
HERE = Path(__file__).parent
# llama-batched-bench crashes in llama.cpp's AMX code.
WITHOUT_AMX = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"


@dataclass(frozen=True, slots=True)
class Sizes:
    """Models of one comparison: a looped one in three formats, a dense one, and a Nanbeige in two formats."""

    name: str
    checkpoint: str  # shape of benchmarks/random_checkpoint.py
    looped: Shape
    dense: Shape
    nanbeige_checkpoint: str
    nanbeige: Shape
    group: int  # weights of a scale at 4 bits


FULL = Sizes("full", "1.4b", Shape(24, 2048, 5632, 16, 16, 128, 49152, loops=4),
             Shape(36, 2560, 9728, 32, 8, 128, 151936, tied=True),
             "nanbeige4.2-3b", Shape(22, 3072, 10752, 48, 8, 128, 166144, loops=2), 128)  # fmt: skip
QUICK = Sizes("quick", "tiny", Shape(3, 128, 352, 4, 4, 32, 384, loops=4),
              Shape(3, 128, 352, 4, 2, 32, 384, tied=True),
              "tiny-nanbeige", Shape(3, 128, 352, 4, 2, 32, 384, loops=2), 16)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Places:
    """Where things are kept."""

    data: Path
    venvs: Path

    def models(self, sizes: Sizes) -> Path:
        """Folder of the models of one comparison."""
        return self.data / sizes.name

    @property
    def llama_bench(self) -> Path:
        """The program that times llama.cpp."""
        return self.data / "llama-bench"

    @property
    def llama_batched_bench(self) -> Path:
        """The program that times llama.cpp with several sequences."""
        return self.data / "llama-batched-bench"

    @property
    def openvino_python(self) -> Path:
        """The interpreter that has OpenVINO."""
        return self.venvs / "peers-openvino" / "bin" / "python"


def prepare(places: Places, sizes: Sizes, peers: tuple[str, ...], say: Callable[[str], None]) -> None:
    """Make what is missing; a second run finds it all there."""
    models = places.models(sizes)
    models.mkdir(parents=True, exist_ok=True)
    checkpoint = models / "checkpoint"
    if {"ouro-edge", "openvino", "dense"} & set(peers):
        _export_random(sizes.checkpoint, checkpoint, models / "ouro-edge", sizes.group, say)
    if "nanbeige" in peers:
        _export_random(sizes.nanbeige_checkpoint, models / "nanbeige-checkpoint", models / "nanbeige", sizes.group, say)
    if "openvino" in peers:
        if not places.openvino_python.is_file():
            say("installing OpenVINO and optimum-intel")
            _run(sys.executable, "-m", "venv", places.openvino_python.parents[1])
            _run(places.openvino_python, "-m", "pip", "install", "--quiet", *OPENVINO)
            _run(places.openvino_python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision")
        if not (models / "openvino" / "openvino_model.xml").is_file():
            say("exporting the checkpoint with optimum-intel")
            _export_openvino(places, checkpoint, models / "openvino", sizes.group)
    files = {"llama.cpp": ("looped.gguf", sizes.looped), "dense": ("dense.gguf", sizes.dense)}
    files["nanbeige"] = ("nanbeige.gguf", sizes.nanbeige)
    needed = [files[peer] for peer in peers if peer in files]
    if needed:
        build_llama_cpp(places.data, (places.llama_bench.name, places.llama_batched_bench.name), say)
    for file, shape in needed:
        if not (models / file).is_file():
            say(f"writing {file}")
            write_gguf(models / file, shape)


def _export_random(shape: str, checkpoint: Path, bundle: Path, group: int, say: Callable[[str], None]) -> None:
    """A random checkpoint, and the same in int4."""
    if not (checkpoint / "config.json").is_file():
        say(f"writing a random checkpoint, {shape}")
        _run(sys.executable, HERE.parent / "random_checkpoint.py", checkpoint, "--shape", shape)
    if not (bundle / "ouro_edge.json").is_file():
        say("exporting it to int4")
        _run(sys.executable, "-m", "ouro_edge", "export", checkpoint, bundle, "--block-size", group,
             "--rounding", "nearest")  # fmt: skip


def _export_openvino(places: Places, checkpoint: Path, out: Path, group: int) -> None:
    """optimum-intel wants the modelling code beside the weights: a second directory that links to them."""
    source = out.with_name("checkpoint-for-transformers")
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir()
    config = json.loads((checkpoint / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "modeling_ouro.OuroConfig",
        "AutoModelForCausalLM": "modeling_ouro.OuroForCausalLM",
    }
    (source / "config.json").write_text(json.dumps(config))
    shutil.copy(HERE / "modeling_ouro.py", source)
    for file in checkpoint.glob("*.safetensors*"):
        (source / file.name).symlink_to(file.resolve())
    partial = out.with_name("openvino.partial")
    shutil.rmtree(partial, ignore_errors=True)
    _run(places.openvino_python, "-m", "optimum.commands.optimum_cli", "export", "openvino", "--model", source,
         "--task", "text-generation-with-past", "--trust-remote-code", "--weight-format", "int4", "--sym",
         "--group-size", group, "--ratio", "1.0", "--disable-convert-tokenizer", partial)  # fmt: skip
    partial.rename(out)


def build_llama_cpp(data: Path, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Build the programs of llama.cpp with these names in the folder `data`, unless they are there."""
    tools = [data / name for name in names if not (data / name).is_file()]
    if not tools:
        return
    say(f"building llama.cpp: {', '.join(tool.name for tool in tools)}")
    for program in ("cmake", "c++"):
        if shutil.which(program) is None:
            raise SystemExit(
                f"error: llama.cpp is built from source, which needs {program}; or leave it out with --peers"
            )
    work = data / "llama.cpp-source"
    unpacked = work / "unpacked"
    if not unpacked.is_file():  # else a build was interrupted: it continues
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        _run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python",
             "--dest", work, LLAMA_CPP)  # fmt: skip
        with tarfile.open(next(work.glob("*.tar.gz"))) as archive:
            archive.extractall(work, filter="data")
        unpacked.touch()
    source = next(work.glob("*/vendor/llama.cpp"))
    off = ("BUILD_SHARED_LIBS", "LLAMA_CURL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES", "LLAMA_BUILD_SERVER")
    for tool in tools:
        flags = WITHOUT_AMX if tool.name == "llama-batched-bench" and _has_amx() else ""
        build = work / ("build-without-amx" if flags else "build")
        _run("cmake", "-S", source, "-B", build, "-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON",
             "-DLLAMA_BUILD_TOOLS=ON", f"-DCMAKE_C_FLAGS={flags}", f"-DCMAKE_CXX_FLAGS={flags}",
             *(f"-D{name}=OFF" for name in off))  # fmt: skip
        _run("cmake", "--build", build, "--target", tool.name, "--parallel", os.cpu_count() or 1)
        shutil.copy(build / "bin" / tool.name, tool)
    shutil.rmtree(work)


def _has_amx() -> bool:
    """Whether the compiler's -march=native includes AMX on this machine."""
    info = Path("/proc/cpuinfo")
    return info.is_file() and "amx_tile" in info.read_text()


def _run(*command: object) -> None:
    """A command that must succeed; its output is shown only when it does not."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(HERE.parents[1])}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.stderr.write(done.stdout[-4000:] + done.stderr[-4000:])
        raise SystemExit(f"error: {Path(str(command[0])).name} failed: {' '.join(map(str, command))[:300]}")
