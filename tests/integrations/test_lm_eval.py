"""lm-evaluation-harness in its own environment: the model in the same process, and the server, on local tasks."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.lm_eval
ROOT = Path(__file__).parents[2]
STORY = "Ada likes Ben. Ben likes Cleo. "
QUESTIONS = [
    {"question": STORY + "Ada likes someone who likes who?", "choices": ["Ben", "Cleo"], "answer": 1},
    {"question": STORY + "Ada likes who?", "choices": ["Ben", "Cleo"], "answer": 0},
    {"question": STORY + "Ben likes who?", "choices": ["Ada", "Cleo"], "answer": 1},
]
CHOICE = """
task: nano_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
ANSWER = """
task: nano_answer
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[answer]}}}}"
generation_kwargs: {{until: ["\\n"], do_sample: false, max_gen_toks: 16}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def python():
    return os.environ.get("OURO_EDGE_LM_EVAL_PYTHON") or pytest.skip("OURO_EDGE_LM_EVAL_PYTHON names no Python")


@pytest.fixture
def tasks(tmp_path):
    """A folder with two tasks on questions that the built-in model answers."""
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS))
    folder = tmp_path / "tasks"
    folder.mkdir()
    for name, text in (("choice", CHOICE), ("answer", ANSWER)):
        (folder / f"{name}.yaml").write_text(text.format(data=data))
    return folder


def run(python, tmp_path, *arguments):
    """Standard output of lm-eval's Python without network."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run([python, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def values(table: str) -> dict[str, float]:
    """Metric -> value of lm-eval's table."""
    return {name: float(value) for name, value in re.findall(r"\|(acc|exact_match)\s*\|[^|]*\|\s*([\d.]+)\|", table)}


def test_a_loaded_model_gives_its_own_scores_and_answers(python, tmp_path):
    code = """
import json, numpy as np, ouro_edge
from lm_eval.api.instance import Instance
from ouro_edge.integrations.lm_eval_model import OuroEdgeLM
model = ouro_edge.load(kv="fp32")
lm = OuroEdgeLM(model, exit="depth:2")
def ask(kind, *arguments):
    return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)
story = "Ada likes Ben. Ben likes Cleo."
encode, rule = model.tokenizer.encode, ouro_edge.FixedDepth(2)
whole, first = encode(story + " Cleo likes Dan."), encode(story)
scored = model.score(whole, exit=rule, top=1)
found = lm.loglikelihood([ask("loglikelihood", story, " Cleo likes Dan.")], disable_tqdm=True)
count = len(whole) - len(first)
greedy = all(t[0][0] == i for t, i in zip(scored.top[-count:], whole[-count:]))
print(np.isclose(found[0][0], scored.logprobs[-count:].sum(), atol=1e-4), found[0][1] == greedy, count > 1)
(total,) = lm.loglikelihood_rolling([ask("loglikelihood_rolling", story)], disable_tqdm=True)
print(np.isclose(total, model.score([lm.prefix_token_id, *first], exit=rule).logprobs.sum(), atol=1e-4))
prompt = lm.apply_chat_template([{"role": "user", "content": story + " Ada likes someone who likes who?"}])
asked = {"until": ["\\n"], "max_gen_toks": 8}
print(OuroEdgeLM(model).generate_until([ask("generate_until", prompt, asked)])[0].strip())
print(OuroEdgeLM(model).generate_until([ask("generate_until", prompt, {**asked, "until": "l"})])[0].strip())
"""
    assert run(python, tmp_path, "-c", code).splitlines() == ["True True True", "True", "Cleo", "C"]


def test_the_command_of_the_adapter_runs_a_task(python, tmp_path, tasks):
    shown = run(python, tmp_path, "-m", "ouro_edge.integrations.lm_eval_model", "run", "--model", "ouro-edge",
                "--model_args", f"model={ROOT / 'ouro_edge' / 'nano'},exit=full", "--tasks", "nano_choice,nano_answer",
                "--include_path", str(tasks), "--apply_chat_template")  # fmt: skip
    assert values(shown) == {"acc": 1.0, "exact_match": 1.0}


def test_the_server_runs_the_same_task(python, tmp_path, tasks):
    nano = ROOT / "ouro_edge" / "nano"
    command = [sys.executable, "-m", "ouro_edge", "serve", str(nano), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        try:
            address = next(m[0] for line in server.stdout if (m := re.search(r"http://[\d.]+:\d+", line)))
            shown = run(python, tmp_path, "-m", "lm_eval", "run", "--model", "local-completions", "--model_args",
                        f"base_url={address}/v1/completions,tokenizer={nano},model=any", "--tasks",
                        "nano_choice,nano_answer", "--include_path", str(tasks), "--apply_chat_template")  # fmt: skip
        finally:
            server.terminate()
    assert values(shown) == {"acc": 1.0, "exact_match": 1.0}


def test_the_documented_task_accepts_a_dollar_sign(python, tmp_path):
    folder = tmp_path / "dollar"
    folder.mkdir()
    data = tmp_path / "gsm8k.jsonl"
    data.write_text(
        "".join(json.dumps({"question": q, "answer": f"So\n#### {n}"}) + "\n" for q, n in (("a?", 18),) * 3)
    )
    [recipe] = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "quality.md").read_text(), re.DOTALL)
    local = f"dataset_path: json\ndataset_name: null\ndataset_kwargs: {{data_files: {{train: {data}, test: {data}}}}}\n"
    (folder / "gsm8k_dollar.yaml").write_text(recipe + local)
    code = f"""
import pathlib, shutil
import lm_eval
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
source = pathlib.Path(lm_eval.__file__).parent / "tasks" / "gsm8k" / "gsm8k.yaml"
shutil.copy(source, {str(folder)!r})
text = source.read_text().replace("task: gsm8k", "task: gsm8k_plain")
pathlib.Path({str(folder / "plain.yaml")!r}).write_text(text + {local!r})
class Says(LM):
    def generate_until(self, requests, disable_tqdm=False):
        return ["She has\\n#### $18", "She has\\n#### 18", "She has\\n#### $19"] * (len(requests) // 3)
    def loglikelihood(self, requests): raise NotImplementedError
    loglikelihood_rolling = loglikelihood
tasks = ["gsm8k_dollar", "gsm8k_plain"]
found = lm_eval.simple_evaluate(Says(), tasks=tasks, task_manager=TaskManager(include_path={str(folder)!r}),
                                num_fewshot=0, bootstrap_iters=0)
for name in tasks:
    print(name, round(found["results"][name]["exact_match,strict-match"], 3))
"""
    lines = run(python, tmp_path, "-c", code).splitlines()
    assert lines[-2:] == ["gsm8k_dollar 0.667", "gsm8k_plain 0.333"]
