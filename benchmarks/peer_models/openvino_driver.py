"""Times an OpenVINO model; runs in OpenVINO's environment, without ouro-edge.

    python openvino_driver.py MODEL '{"threads": 2, "kind": "decode", "size": 2048, "tokens": 16}'

Uses the plain runtime without transformers, which has the least load time and memory. A context is set through the
model's state variables without computing it, because the time of attention does not depend on their values. Prints one
object: seconds of the test, seconds to load and make one token, bytes of memory after that, and peak memory. Linux.
"""

import json
import sys
import time
from pathlib import Path

BEGAN = time.perf_counter()

import numpy as np  # noqa: E402 (imports belong to the load time)
import openvino  # noqa: E402


def memory(field):
    """Bytes of a line of Linux's status file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


class Peer:
    """A compiled model and its one request."""

    def __init__(self, folder, threads):
        core = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self.model = core.compile_model(core.read_model(Path(folder) / "openvino_model.xml"), "CPU", settings)
        self.request = self.model.create_infer_request()
        self.vocab = self.model.output("logits").get_partial_shape()[2].get_length()
        self.rng = np.random.default_rng(0)

    def forward(self, count, start):
        """One call over `count` random ids after `start` positions; the last row's likeliest id."""
        end = start + count
        inputs = {
            "input_ids": self.rng.integers(0, self.vocab, (1, count)),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        return int(self.request.infer(inputs)["logits"][0, -1].argmax())

    def fill(self, length):
        """Make the state hold `length` positions."""
        self.request.reset_state()
        values = None
        for state in self.request.query_state():
            if values is None:
                _, heads, _, width = state.state.shape
                values = self.rng.standard_normal((1, heads, length, width), np.float32)
            state.state = openvino.Tensor(values)


def main():
    """Load, time, print."""
    plan = json.loads(sys.argv[2])
    peer = Peer(sys.argv[1], plan["threads"])
    peer.forward(1, 0)  # what loading has put off
    report = {"load": time.perf_counter() - BEGAN, "resident": memory("VmRSS")}
    for _ in range(2):  # the first one does not count
        if plan["kind"] == "prefill":
            peer.request.reset_state()
            began = time.perf_counter()
            peer.forward(plan["size"], 0)
        else:
            peer.fill(plan["size"])
            peer.forward(1, plan["size"])
            began = time.perf_counter()
            for i in range(1, plan["tokens"] + 1):
                peer.forward(1, plan["size"] + i)
        report["seconds"] = time.perf_counter() - began
    print(json.dumps(report | {"peak": memory("VmHWM")}))


main()
