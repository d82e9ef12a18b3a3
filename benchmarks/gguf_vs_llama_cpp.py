"""The same GGUF file in ouro-edge and in llama.cpp: greedy tokens and top logits side by side, tokens per second.

    python benchmarks/gguf_vs_llama_cpp.py MODEL.gguf --peer PYTHON      a file that both read (architecture llama)
    python benchmarks/gguf_vs_llama_cpp.py --looped q8_0 --peer PYTHON   a random looped model

PYTHON is an interpreter with `xllamacpp`. llama.cpp does not implement Ouro, but its architecture `nanbeige` loops in
the same way: it is Ouro without the two closing norms of a layer and without the gate. The model is
written once for each of the two names of the architecture, with the same tensors.

Agreement is measured in two ways: the length of the common prefix of the two greedy answers, and, because one different
token changes all later ones, how often both have the same next token after llama.cpp's history. For the second measure
the five most probable tokens of both are printed with log-probabilities at every position, with their differences.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np

TOP_TOKENS = 5
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived",
    "Water boils at one hundred degrees because",
    "def fibonacci(n):\n",
)


def peer(request: dict[str, Any]) -> dict[str, Any]:
    """Greedy tokens of every prompt from llama.cpp's server; runs in the other interpreter.

    With `exact`, llama.cpp computes attention in float32 as ouro-edge does, and `top` has [id, log-probability] of the
    most probable tokens at every position. Otherwise llama.cpp has its default settings, for its speed.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = request["model"]
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 1024, 1, 0, True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
    params.sampling.temp = 0.0
    if request["exact"]:  # llama.cpp's flash attention rounds to float16
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    start = time.perf_counter()
    server = xllamacpp.Server(params)
    answers, load = [], time.perf_counter() - start
    for ids in request["prompts"]:
        body = {
            "prompt": ids, "n_predict": request["tokens"], "temperature": 0.0, "top_k": 1, "ignore_eos": True,
            "return_tokens": True, "cache_prompt": False, "repeat_penalty": 1.0,
            "n_probs": TOP_TOKENS if request["exact"] else 0,
        }  # fmt: skip
        post = urllib.request.Request(server.listening_address + "/completion", json.dumps(body).encode())
        with urllib.request.urlopen(post) as reply:  # the Python calls do not return token ids
            answer = json.load(reply)
        probabilities = answer.get("completion_probabilities", [])
        top = [[(token["id"], token["logprob"]) for token in at["top_logprobs"]] for at in probabilities]
        answers.append({"ids": answer["tokens"], "speed": answer["timings"]["predicted_per_second"], "top": top})
    return {"version": xllamacpp.__version__, "load": load, "answers": answers}


def ask_peer(python: str, request: dict[str, Any]) -> dict[str, Any]:
    """The result of `peer` in the interpreter `python`."""
    done = subprocess.run([python, __file__], input=json.dumps(request), capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"llama.cpp failed: {done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def looped_model(path: Path, precision: str) -> Any:
    """A random looped model in llama.cpp's `nanbeige` schema, and the bundle that runs the same file here."""
    from ouro_edge.arch.config import ModelConfig
    from ouro_edge.arch.weights import Weights, tensor_shapes
    from ouro_edge.export.checkpoint import Checkpoint
    from ouro_edge.export.gguf.gguf_bundle import GgufBundle
    from ouro_edge.export.gguf.header import read_header
    from ouro_edge.export.gguf.reader import tensor_readers
    from ouro_edge.export.gguf.writer import QuantizedWeights, write_gguf
    from ouro_edge.export.gguf.writer import precision as type_of

    config = ModelConfig(
        model_type="ouro", vocab_size=2048, hidden_size=512, intermediate_size=1408, num_layers=6, num_heads=8,
        num_kv_heads=8, head_dim=64, loops=4, max_positions=1024, rope_theta=1e6, rms_norm_eps=1e-6,
        tie_word_embeddings=False, sandwich_norms=False, has_gate=False, exit_threshold=1.0, bos_token_id=None,
        eos_token_ids=(), pad_token_id=None,
    )  # fmt: skip
    rng = np.random.default_rng(0)

    class Random:
        def __init__(self, shape: tuple[int, ...]) -> None:
            self.shape = shape
            spread = 1.0 if len(shape) == 1 else shape[1] ** -0.5
            values = rng.standard_normal(shape).astype(np.float32) * np.float32(spread)
            self.values = 1 + values / 8 if len(shape) == 1 else values

        def read(self, start: int, stop: int) -> Any:
            return self.values[start:stop]

    weights = Weights(config, {name: Random(shape) for name, shape in tensor_shapes(config).items()})
    kind = type_of(precision)
    text = {
        "tokenizer.ggml.model": "gpt2",  # llama.cpp's server needs a vocabulary; prompts are ids
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [chr(0x4E00 + i) for i in range(config.vocab_size)],
        "tokenizer.ggml.token_type": np.ones(config.vocab_size, np.int32),
        "tokenizer.ggml.merges": ["\u4e00 \u4e01"],
    }
    ours = path.with_name("ours.gguf")
    write_gguf(ours, config, QuantizedWeights(weights, kind), kind, text)
    copy_as(path, ours, "nanbeige")
    ours.unlink()
    header = read_header(path)
    stored = Weights(config, tensor_readers(path, header, config))
    return GgufBundle(Checkpoint(path, "looped", config, stored, {}, {}), header)


def copy_as(out: Path, source: Path, arch: str) -> None:
    """Write a copy of a GGUF file under the name of another architecture."""
    from gguf import GGUFReader, GGUFValueType, GGUFWriter

    reader = GGUFReader(source)
    before = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(out, arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue  # written by the library
        key = name.replace(f"{before}.", f"{arch}.", 1) if name.startswith(f"{before}.") else name
        element = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Read the arguments, run both, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", help="a .gguf file of architecture llama")
    parser.add_argument("--peer", required=True, metavar="PYTHON", help="an interpreter with xllamacpp")
    parser.add_argument("--looped", metavar="PRECISION", help="a random looped model in f32, q8_0, q4_0, ... instead")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.looped is None):
        parser.error("name a model, or --looped PRECISION")
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments, Path(folder))


def compare(arguments: argparse.Namespace, folder: Path) -> None:
    """Run both engines on the same prompts."""
    import ouro_edge

    start = time.perf_counter()
    if arguments.looped:
        file = folder / "looped.gguf"
        bundle = looped_model(file, arguments.looped)
        start = time.perf_counter()
        from ouro_edge.runtime.open_model import open_model

        model = open_model(bundle, threads=arguments.threads)
        prompts = [[(7 * i * (row + 3) + row) % 2048 for i in range(1, 25)] for row in range(4)]
    else:
        file = arguments.model
        model = ouro_edge.load(file, threads=arguments.threads)
        prompts = [model.tokenizer.encode(text) for text in PROMPTS]
    load = time.perf_counter() - start
    request = {"model": str(file), "prompts": prompts, "tokens": arguments.tokens, "threads": arguments.threads}
    usual = ask_peer(arguments.peer, request | {"exact": False})
    exact = ask_peer(arguments.peer, request | {"exact": True})

    together = forced = total = 0
    speeds, distances = [], []
    for ids, answer in zip(prompts, exact["answers"], strict=True):
        sampler = ouro_edge.Sampler()
        *tokens, last = model.generate(ids, max_tokens=arguments.tokens, stop_ids=(), sampler=sampler)
        own = [event.id for event in tokens if isinstance(event, ouro_edge.Token)]
        assert isinstance(last, ouro_edge.Done)
        speeds.append((len(own) - 1) / (last.timings.total - last.timings.first_token))
        other = answer["ids"]
        together += next((i for i, (a, b) in enumerate(zip(own, other, strict=False)) if a != b), len(other))
        logits = model.forward(ids + other[:-1]).logits[len(ids) - 1 :].astype(np.float64)
        forced += int((logits.argmax(axis=1) == other).sum())
        total += len(other)
        distances.append(side_by_side(logits, answer["top"]))
    middle = sorted(answer["speed"] for answer in usual["answers"])[len(prompts) // 2]
    print(f"{file.name}, {arguments.threads} threads, {len(prompts)} prompts, {total} greedy tokens")
    print(f"ouro-edge {ouro_edge.__version__}: load {load:.2f} s, {sorted(speeds)[len(speeds) // 2]:.1f} tokens/s")
    print(f"llama.cpp (xllamacpp {usual['version']}): load {usual['load']:.2f} s, {middle:.1f} tokens/s")
    print(f"greedy answers agree for the first {together} of {total} tokens; same next token after the same history: "
          f"{forced} of {total}")  # fmt: skip
    away = np.concatenate(distances)
    print(f"log-probabilities of llama.cpp's {TOP_TOKENS} most probable tokens: mean difference {away.mean():.2g}, "
          f"greatest {away.max():.2g}")  # fmt: skip


def side_by_side(logits: Any, top: list[list[tuple[int, float]]]) -> Any:
    """Print the most probable tokens of both at every position; returns the differences [T, TOP_TOKENS].

    `logits` [T, V] are from ouro-edge, `top` from llama.cpp: [id, log-probability], most probable first.
    """
    shifted = logits - logits.max(axis=1, keepdims=True)
    ours = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    away = np.array([[abs(row[i] - value) for i, value in best] for row, best in zip(ours, top, strict=True)])
    print("position: llama.cpp's id and log-probability, ... | ouro-edge's, ... | mean and greatest difference")
    for at, (row, best) in enumerate(zip(ours, top, strict=True)):
        own = [(i, row[i]) for i in np.argsort(-row)[:TOP_TOKENS]]
        columns = (", ".join(f"{i} {value:.3f}" for i, value in side) for side in (best, own))
        print(f"{at}:", " | ".join((*columns, f"{away[at].mean():.2g} {away[at].max():.2g}")))
    return away


if __name__ == "__main__":
    if len(sys.argv) == 1:
        print(json.dumps(peer(json.load(sys.stdin))))
    else:
        main()
