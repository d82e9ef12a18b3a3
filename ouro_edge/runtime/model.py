"""A loaded model: the public interface of the runtime. Combines a backend and text files; has no running state.

A Model does not change after loading, so threads may share it. Each generation has its own sequence.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Unpack

from ouro_edge.arch.published import base_model_hint
from ouro_edge.errors import BundleError, NoTokenizerError, RequestError, TemplateError
from ouro_edge.runtime.asynchronous import AsyncTwins
from ouro_edge.runtime.backend.cancel import Cancel
from ouro_edge.runtime.checks import check_kind, check_whole
from ouro_edge.runtime.events import Event
from ouro_edge.runtime.exits.policies import ExitPolicy
from ouro_edge.runtime.forward_model import ForwardModel
from ouro_edge.runtime.generate import generate_events
from ouro_edge.runtime.generate_many import Generate, check_many, run_many, samples_of
from ouro_edge.runtime.request import GenerateOptions, Request, make_request
from ouro_edge.runtime.sampling.constraint import Constraint
from ouro_edge.runtime.sampling.generation_config import sampler_settings
from ouro_edge.runtime.sampling.sampler import Sampler
from ouro_edge.runtime.sequence.prefix import check_prefix
from ouro_edge.runtime.sequence.sequence import TokenSequence
from ouro_edge.runtime.sequence.shared_prompt import SharedPrompt
from ouro_edge.runtime.speculation.eligibility import check_speculate
from ouro_edge.runtime.text.chat_template import check_variables

if TYPE_CHECKING:
    from ouro_edge.runtime.request import Speculate

_MAX_SAMPLES = 65536


class Model(ForwardModel, AsyncTwins):
    """A model that can generate. Use it as a context manager, or let it go out of scope.

    `ouro_edge.load` creates one from files, `Model(backend, text)` from any backend.
    """

    def default_sampler(self, **changes: Any) -> Sampler:
        """The sampler of generation_config.json with `changes` applied; greedy if the file does not request sampling.

        BundleError when the file has values that a sampler does not accept.
        """
        settings = sampler_settings(self.text.generation)
        try:
            return Sampler(**{**settings, **changes})
        except RequestError as problem:
            Sampler(**changes)  # an error in `changes` is reported as RequestError
            raise BundleError(f"{self.text.path / 'generation_config.json'}: {problem}") from None

    def generate(
        self,
        prompt: str | Iterable[int],
        *,
        max_tokens: int | None = None,
        exit: ExitPolicy | None = None,
        sampler: Sampler | None = None,
        stop: str | Sequence[str] = (),
        stop_ids: Iterable[int] | None = None,
        top_logprobs: int = 0,
        logit_lens: int = 0,
        constraint: Constraint | None = None,
        cancel: Cancel | None = None,
        sequence: TokenSequence | None = None,
        speculate: Speculate = "auto",
        new_text: bool = False,
        prefix: int | None = None,
        lens: int | None = None,
    ) -> Iterator[Event]:
        """Continue a text or a list of token ids; yields a Token for each id and then one Done.

        `exit`, `sampler` and `stop_ids` default to the model's settings, `max_tokens` to the rest of the context. The
        prefix that a `sequence` from `new_sequence` shares with the prompt is not computed again. Tokens have the
        `top_logprobs` most probable ids at their depth, and the `logit_lens` most probable ids of every loop, which
        costs a head call per loop. A new `constraint` restricts the tokens of this answer. `speculate` affects only the
        time. With `new_text`, as for the answer in a chat, the text does not continue the prompt's: a space at its
        start that only separates words is left out. In a model with prefix_lm, the first `prefix` tokens of the prompt
        see each other in both directions; default: all of a text, none of a list of ids. `lens` is the old name of
        `logit_lens`. RequestError before anything runs.
        """
        if lens is not None:
            warnings.warn("lens is now logit_lens", DeprecationWarning, stacklevel=2)
            logit_lens = lens
        state = self._own(sequence)
        ids = tuple(self._ids("prompt", prompt))
        if prefix is None:
            prefix = self.prefix_of(ids) if isinstance(prompt, str) else 0
        if not self.has_tokenizer and stop:
            raise NoTokenizerError("stop strings need a tokenizer, which this model lacks: use stop_ids")
        request = make_request(
            self.config,
            ids,
            max_tokens=max_tokens,
            exit=self.default_exit() if exit is None else exit,
            sampler=self.default_sampler() if sampler is None else sampler,
            stop=stop,
            stop_ids=self.stop_ids if stop_ids is None else stop_ids,
            top_logprobs=top_logprobs,
            logit_lens=logit_lens,
            constraint=constraint,
            cancel=cancel,
            speculate=speculate,
            new_text=new_text,
            prefix=prefix,
        )
        obstacle = state.draft_obstacle(request.exit)
        allowed = check_speculate(speculate, self.config, request.exit, constraint, obstacle)
        return self._events(state, replace(request, speculate=allowed))

    def generate_many(
        self,
        prompts: Iterable[str | Iterable[int]],
        *,
        samples: int = 1,
        threads: int | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[tuple[int, Event]]:
        """Continue many prompts at once; yields pairs (index of the prompt, event) as they come.

        At most `threads` generations run at a time (default: what the model was loaded for with `parallel`); they share
        calls where the backend can. With `samples` above 1, every prompt is computed once and continued that many
        times: sample j of prompt i has the index i * samples + j, and the seed of the sampler plus j. Options and
        events are those of `generate`; `sequence` and `constraint` belong to one answer and are refused. An error of
        one generation ends all.
        """
        count = check_whole("threads", threads or self.backend.slots, 1, 64)
        check_whole("samples", samples, 1, _MAX_SAMPLES)
        check_many(options)
        for name, kind in (("exit", ExitPolicy), ("sampler", Sampler), ("cancel", Cancel)):
            check_kind(name, options.get(name), kind, optional=True)
        cancel = options.pop("cancel", None) or Cancel()
        return run_many(self._generations(prompts, samples, options), count, cancel, dict(options))

    def _generations(
        self, prompts: Iterable[str | Iterable[int]], samples: int, options: GenerateOptions
    ) -> Iterator[Generate]:
        """The generations of `generate_many`, in order."""
        for prompt in prompts:
            if samples == 1:
                yield partial(self.generate, prompt)
                continue
            exit, sampler = options.get("exit") or self.default_exit(), options.get("sampler") or self.default_sampler()
            ids, prefix = tuple(self._ids("prompt", prompt)), options.get("prefix")
            if prefix is None:
                prefix = self.prefix_of(ids) if isinstance(prompt, str) else 0
            check_prefix(self.config, prefix, len(ids))
            shared = SharedPrompt(ids, exit, samples, self.new_sequence, prefix)
            yield from samples_of(partial(self.generate, prefix=prefix), shared, samples, sampler)

    def _events(self, sequence: TokenSequence, request: Request) -> Iterator[Event]:
        """Run a request; a generator, so that nothing runs before the first event is requested."""
        cached = sequence.set_prompt(request.ids, request.prefix)
        yield from generate_events(sequence, self.text.tokenizer, request, cached)

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        template: Mapping[str, Any] | None = None,
        **options: Unpack[GenerateOptions],
    ) -> Iterator[Event]:
        """Answer the last of `messages` ({"role": ..., "content": ...}); options and events as for `generate`.

        `template` are variables of the chat template, such as enable_thinking.
        """
        prompt = self.render(messages, **check_variables(template))
        ids = self.tokenizer.encode(prompt)
        options.setdefault("new_text", True)
        if options.get("prefix") is None:
            options["prefix"] = self.prefix_of(ids)
        return self.generate(ids, **options)

    @property
    def chat_hint(self) -> str | None:
        """One line for a user who chats with a model that was not trained for chats; None for others."""
        return None if self.text.template is None else base_model_hint(self.config)

    def render(self, messages: Sequence[Mapping[str, Any]], **variables: Any) -> str:
        """The prompt text of messages, by the model's chat template.

        TemplateError without a template, or when the template fails, rejects the messages or drops one.
        """
        if self.text.template is None:
            raise TemplateError(f"{self.text.path} has no chat template: use generate with a plain prompt (--raw)")
        return self.text.template.render_all(messages, **variables)
