"""Ray Data on a local cluster of two workers, in an environment that has Ray; in others these tests are skipped."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import textwrap
from contextlib import suppress
from pathlib import Path

import pytest

import ouro_edge

pytestmark = pytest.mark.ray
END = "sys.stdout.flush(); ray.shutdown(); cluster.shutdown()\n"
ROOT = Path(__file__).parents[2]

# Two nodes with one CPU each, beside a head without: two actors with one CPU run on two workers.
CLUSTER = """
import json, os, signal, sys
import pyarrow as pa
import ray
from ray.cluster_utils import Cluster
from ouro_edge.integrations.ray import Generator, answer

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
for _ in range(2):
    cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
HERE = sys.argv[1]
os.chdir(HERE)
"""


@pytest.fixture
def run(tmp_path):
    """Run code on a cluster of its own; returns the last line of its output as JSON."""
    python = os.environ.get("OURO_EDGE_RAY_PYTHON")
    if not python:
        pytest.skip("OURO_EDGE_RAY_PYTHON names no Python with ray and ouro-edge")

    def run(code: str):
        script = tmp_path / "script.py"
        script.write_text(CLUSTER + textwrap.dedent(code) + END)
        environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
        process = subprocess.Popen(
            [python, script, tmp_path], env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True
        )
        try:
            out, error = process.communicate(timeout=400)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # nothing of the cluster stays when it was interrupted
        assert process.returncode == 0, (out, error[-3000:])
        return json.loads(out.strip().splitlines()[-1])

    return run


QUESTION = "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?"


def test_jsonl_in_parquet_out_with_errors_in_their_rows(run, tmp_path):
    rows = [{"id": i, "messages": [{"role": "user", "content": QUESTION}]} for i in range(20)]
    rows[7]["messages"] = [{"role": "user", "content": "Ada " * 600}]
    rows[11]["messages"] = None
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = run(
        """
        data = ray.data.read_json(HERE + "/in.jsonl").repartition(4)
        answer(data, actors=2, threads=1, batch_size=3, max_tokens=8, exit="depth:4").write_parquet(HERE + "/out")
        back = ray.data.read_parquet(HERE + "/out").sort("id")
        print(json.dumps(back.take_all()))
        """
    )
    assert [row["id"] for row in found] == list(range(20))
    assert (
        found[7]["text"] is None and found[11]["error"] == "a row has either a prompt or messages; expected one of them"
    )
    with ouro_edge.load(threads=1) as model:
        exit_rule = ouro_edge.FixedDepth(4)
        events = list(model.chat(rows[0]["messages"], max_tokens=8, exit=exit_rule, sampler=model.default_sampler()))
    tokens, done = events[:-1], events[-1]
    for row in (row for row in found if row["id"] not in (7, 11)):
        assert row["text"] == done.text == "Cleo" and row["error"] is None
        assert row["token_ids"] == [token.id for token in tokens] and row["depths"] == [4] * len(tokens)
        assert row["logprobs"] == pytest.approx([token.logprob for token in tokens], abs=1e-4)
        assert row["usage"]["completion_tokens"] == len(tokens) and row["usage"]["loops_saved"] == 0


def test_prompts_seeds_and_sharing(run):
    found = run(
        """
        rows = [{"id": i, "prompt": "Ada likes", "seed": i % 4} for i in range(12)]
        data = ray.data.from_items(rows)
        done = answer(data, actors=2, batch_size=4, parallel=2, max_tokens=3, temperature=1.0)
        print(json.dumps(sorted(done.take_all(), key=lambda row: row["id"])))
        """
    )
    assert len(found) == 12 and not any(row["error"] for row in found)
    ids = [tuple(row["token_ids"]) for row in found]
    assert ids[:4] == ids[4:8] == ids[8:] and len(set(ids[:4])) > 1
    assert all(value < 0 for row in found for value in row["sampling_logprobs"])


def test_every_row_comes_out_once_when_an_actor_is_killed(run):
    found = run(
        """
        KILLED = os.path.abspath("killed")

        class Fragile(Generator):
            def __call__(self, batch):
                if 30 in batch["id"].to_pylist() and not os.path.exists(KILLED):  # the first time only
                    open(KILLED, "w").close()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(batch.append_column("pid", pa.array([os.getpid()] * len(batch))))

        data = ray.data.from_items([{"id": i, "prompt": f"{i} Ada likes"} for i in range(64)])
        done = data.map_batches(
            Fragile, fn_constructor_kwargs={"max_tokens": 2}, batch_format="pyarrow", batch_size=4,
            compute=ray.data.ActorPoolStrategy(size=2), num_cpus=1,
        ).take_all()
        print(json.dumps([os.path.exists(KILLED), [row["id"] for row in done], len({row["pid"] for row in done})]))
        """
    )
    killed, ids, processes = found
    assert killed and sorted(ids) == list(range(64)) and processes >= 2


def test_a_job_continues_from_rays_checkpoint(run):
    found = run(
        """
        import glob, time
        from ray.data.checkpoint import CheckpointConfig

        rows = [{"id": f"{i:03}", "prompt": "Ada likes"} for i in range(40)]
        ray.data.from_items(rows).repartition(10).write_parquet(HERE + "/in")

        class Counting(Generator):
            def __call__(self, batch):
                ids = batch["id"].to_pylist()
                if "035" in ids and not os.path.exists(HERE + "/repaired"):
                    for _ in range(200):  # until rows before it have been written
                        if glob.glob(HERE + "/checkpoint/*.parquet"):
                            break
                        time.sleep(0.1)
                    raise RuntimeError("the job is interrupted")
                with open(f"{HERE}/seen-{os.getpid()}", "a") as file:
                    file.write("".join(f"{i}\\n" for i in ids))
                return super().__call__(batch)

        def job():
            context = ray.data.DataContext.get_current()
            context.checkpoint_config = CheckpointConfig(
                id_column="id", checkpoint_path=HERE + "/checkpoint", delete_checkpoint_on_success=False
            )
            ray.data.read_parquet(HERE + "/in").repartition(10).map_batches(
                Counting, fn_constructor_kwargs={"max_tokens": 2}, batch_format="pyarrow", batch_size=4,
                compute=ray.data.ActorPoolStrategy(size=1), num_cpus=1,
            ).write_parquet(HERE + "/out", min_rows_per_file=4)

        def seen():
            return sorted(line.strip() for name in glob.glob("seen-*") for line in open(name))

        try:
            job()
            failed = False
        except Exception:
            failed = True
        first = seen()
        open("repaired", "w").close()
        job()
        ray.data.DataContext.get_current().checkpoint_config = None
        ids = sorted(row["id"] for row in ray.data.read_parquet(HERE + "/out").take_all())
        print(json.dumps([failed, len(first), len(seen()), ids]))
        """
    )
    failed, first, total, ids = found
    assert failed and ids == [f"{i:03}" for i in range(40)]
    assert first >= 4 and total < 40 + first  # the second run did not begin from the start


def test_the_example_and_the_page(run, tmp_path):
    rows = [{"id": i, "messages": [{"role": "user", "content": QUESTION}]} for i in range(6)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page = (ROOT / "docs/ray.md").read_text()
    blocks = re.findall(r"```python\n(.+?)```", page, re.S)
    assert len(blocks) == 2
    (tmp_path / "page.py").write_text("".join(blocks).replace("/tmp/ouro-edge", str(tmp_path / "page")))
    found = run(
        f"""
        import runpy
        sys.argv = ["answer_file.py", "in.jsonl", "out", "--max-tokens", "4", "--exit", "full"]
        runpy.run_path({str(ROOT / "examples/ray/answer_file.py")!r}, run_name="__main__")
        runpy.run_path("page.py")
        ray.data.DataContext.get_current().checkpoint_config = None
        tables = [ray.data.read_parquet(HERE + "/" + name).take_all() for name in ("out", "page-answers")]
        print(json.dumps([sorted((row["id"], row["text"]) for row in rows) for rows in tables]))
        """
    )
    assert found[0] == [[i, "Cleo"] for i in range(6)]
    assert [row[0] for row in found[1]] == [1, 2] and all(isinstance(row[1], str) for row in found[1])


def test_wrong_options_are_reported_before_the_job(run):
    found = run(
        """
        data = ray.data.from_items([{"prompt": "x"}])
        try:
            answer(data, temperature=-1)
        except Exception as problem:
            print(json.dumps(str(problem)))
        """
    )
    assert "-1" in found
