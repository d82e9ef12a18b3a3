"""A model of lm-evaluation-harness (extra `eval`) that runs in the same process, under the name `ouro-edge`.

    python -m ouro_edge.integrations.lm_eval_model --model ouro-edge --model_args model=ouro-int4 --tasks arc_easy

accepts what the command lm-eval accepts. Model arguments: `model`, `exit` (an exit rule such as gate:0.7), `threads`,
`kv` and `max_gen_toks`. In a program, pass an `OuroEdgeLM` to `lm_eval.simple_evaluate`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from lm_eval import utils
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model

import ouro_edge
from ouro_edge.errors import RequestError
from ouro_edge.runtime.exits.parse import parse_exit
from ouro_edge.runtime.options import KVType

_MAX_GEN_TOKS = 256


@register_model("ouro-edge")
class OuroEdgeLM(TemplateLM):  # type: ignore[misc]
    """Log-likelihoods and answers of a model, which is a loaded one or named as for `ouro_edge.load`.

    Every request runs on its own, at the depths that the exit rule chooses; the default is the model's own rule. Text
    longer than the context loses its beginning.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ouro_edge.Model | None = None,
        *,
        exit: str | None = None,
        threads: int | None = None,
        kv: KVType = "auto",
        max_gen_toks: int = _MAX_GEN_TOKS,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        """`batch_size`, `max_batch_size` and `device` are accepted because lm-eval always passes them."""
        super().__init__()
        self.model = model if isinstance(model, ouro_edge.Model) else ouro_edge.load(model, threads=threads, kv=kv)
        self.exit = None if exit is None else parse_exit(exit)
        self._max_gen_toks = int(max_gen_toks)
        self._sequence = self.model.new_sequence()

    @property
    def eot_token_id(self) -> int:
        return self.model.stop_ids[0] if self.model.stop_ids else 0

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text without context: BOS, else the end of a text."""
        bos = self.model.config.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.model.name

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; a BOS token is never added."""
        return list(self.model.tokenizer.encode(string))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        if not add_generation_prompt:
            raise RequestError("an answer that has begun cannot be rendered; leave gen_prefix out of the task")
        return self.model.render(chat_history)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own template, or none; lm-eval cannot choose another."""
        return self.model.chat_template if chat_template else ""

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Sum of the log-probabilities of each continuation, and whether greedy decoding would choose it."""
        most, found = self.model.config.max_positions, []
        for _, context, continuation in requests:
            ids = [*context, *continuation][-most:]
            score = self.model.score(ids, exit=self.exit, top=1, sequence=self._sequence)
            count = min(len(continuation), len(ids) - 1)
            greedy = all(top[0][0] == i for top, i in zip(score.top[-count:], ids[-count:], strict=True))
            found.append((float(score.logprobs[-count:].sum()), greedy))
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows of the context without overlap."""
        found = []
        for request in requests:
            windows = utils.get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                max_seq_len=self.model.config.max_positions - 1, context_len=1,
            )  # fmt: skip
            pairs = [(None, *utils.make_disjoint_window(window)) for window in windows]
            found.append(sum(logprob for logprob, _ in self._loglikelihood_tokens(pairs)))
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each text, without the stop string that ended it."""
        return [self._answer(*request.args) for request in requests]

    def _answer(self, context: str, settings: dict[str, Any]) -> str:
        stop = settings.get("until") or []
        most = int(settings.get("max_gen_toks") or settings.get("max_tokens") or self._max_gen_toks)
        sampled = settings.get("do_sample", float(settings.get("temperature") or 0) > 0)
        sampler = ouro_edge.Sampler()
        if sampled:
            names = ("temperature", "top_k", "top_p", "min_p")
            sampler = self.model.default_sampler(**{n: settings[n] for n in names if settings.get(n) is not None})
        ids = self.tok_encode(context)[-(self.model.config.max_positions - most) :]
        *_, done = self.model.generate(
            ids, exit=self.exit, sampler=sampler, max_tokens=most, sequence=self._sequence,
            stop=[stop] if isinstance(stop, str) else list(stop),
        )  # fmt: skip
        assert isinstance(done, ouro_edge.Done)
        return done.text


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
