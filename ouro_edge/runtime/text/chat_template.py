"""Renders a chat to text with the model's Jinja template. Uses jinja2; must not import the tokenizer.

A template is untrusted code. It runs in Jinja's immutable sandbox, without access to Python attributes and without
changing the messages. Loop iterations and calls count against a budget; the size of products and powers and the length
of the text are limited. Not limited: a single filter or method can build a large value (`"x"|center(99999999)`), also
while the template is compiled; doubling a string takes few iterations; a filter over a long list takes its own time. To
serve untrusted models, limit the memory and time of the process.

Special tokens in the rendered text are encoded as such: a message that contains `<|im_end|>` ends its turn. To serve
untrusted messages, remove these strings first.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from ouro_edge.errors import RequestError, TemplateError, one_line
from ouro_edge.runtime.checks import check_kind
from ouro_edge.runtime.text.chat_messages import Message, check_all_printed, normal_messages

if TYPE_CHECKING:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEXT_CHARACTERS = 1 << 24  # in a rendered chat
MAX_STEPS = 1_000_000  # loop iterations and calls per rendering
_MAX_PRODUCT_SIZE = 1 << 20  # elements of a repeated string or list, bits of a number

_steps_left: ContextVar[list[int]] = ContextVar("steps_left")  # set during a rendering only


class ChatTemplate:
    """A compiled template with the special tokens that it may print; thread-safe.

    TemplateError when the source is not a valid template.
    """

    __slots__ = ("_template", "bos_token", "eos_token", "source")

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        try:
            self._template: jinja2.Template = _environment().from_string(source)
        except Exception as problem:  # including errors of Python's own compiler
            where = f" in line {problem.lineno}" if hasattr(problem, "lineno") else ""
            raise TemplateError(f"the chat template cannot be compiled{where}: {_reason(problem)}") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a chat; `variables` (enable_thinking, tools, ...) are passed to the template.

        A message is a mapping with a role and a content: text, None (with tool_calls) or a list of text parts, which
        are joined by newlines. RequestError for other messages, TemplateError when the template fails or rejects them.
        Messages that the template drops are not noticed: see `render_all`.
        """
        return self._render(normal_messages(messages, self.source), add_generation_prompt, variables)

    def render_all(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """As `render`, but TemplateError when the template drops one of the messages, for example an unknown role."""
        normal = normal_messages(messages, self.source)
        text = self._render(normal, add_generation_prompt, variables)
        check_all_printed(normal, text, lambda some: self._render(some, add_generation_prompt, variables))
        return text

    def _render(self, messages: Sequence[Message], add_generation_prompt: bool, variables: Mapping[str, Any]) -> str:
        values: dict[str, Any] = {
            "tools": None,  # templates test `is not none`, which is true for undefined variables
            "documents": None,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
        }
        parts: list[str] = []
        length = 0
        before = _steps_left.set([MAX_STEPS])
        try:
            for part in self._template.generate(values):
                length += len(part)
                if length > MAX_TEXT_CHARACTERS:
                    raise TemplateError(f"the chat exceeds {MAX_TEXT_CHARACTERS} characters when rendered; shorten it")
                parts.append(part)
        except TemplateError:
            raise
        except Exception as problem:  # untrusted code may raise anything
            raise TemplateError(f"the chat template refuses the messages: {_reason(problem)}") from None
        finally:
            _steps_left.reset(before)
        return "".join(parts)


def check_variables(variables: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Chat template variables from a caller. RequestError when a name is reserved or not text."""
    check_kind("template", variables, Mapping, optional=True)
    for name in variables or {}:
        if not isinstance(name, str) or name in ("self", "messages"):
            raise RequestError(f"template variable {name!r} is reserved; expected a name such as 'enable_thinking'")
    return variables or {}


def _spend(steps: int) -> None:
    left = _steps_left.get()
    left[0] -= steps
    if left[0] < 0:
        raise TemplateError(
            f"the chat template exceeded {MAX_STEPS} steps; shorten the chat or fix the template's loops"
        )


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend(1)
        yield item


def _result_size(operator: str, left: Any, right: Any) -> int:
    """Upper bound of the size of an operator's result: elements of a repeated string or list, or bits of a number."""
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length()
        return bits * abs(right) if operator == "**" else bits + right.bit_length()
    for value, times in ((left, right), (right, left)):
        if isinstance(times, int) and isinstance(value, Sized):
            return len(value) * times
    return 0


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """Hugging Face's `tojson`: no HTML escapes, keys in their order (transformers, utils/chat_template_utils.py)."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(f"the chat template refuses the messages: {_reason(message)}")


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Hugging Face's environment for chat templates, plus the step budget. Holds no state of any chat."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.runtime import LoopContext
    from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

    class Generation(Extension):
        """`{% generation %}` marks answers for training; its body is rendered as usual."""

        tags = {"generation"}  # noqa: RUF012  (declared like this by Jinja)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Counting(CodeGenerator):
        """Passes the iterable of each loop through a filter that counts iterations."""

        def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:  # noqa: N802  (Jinja's name)
            for loop in node.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
            super().visit_Template(node, frame)

    class Sandbox(ImmutableSandboxedEnvironment):
        code_generator_class = Counting
        intercepted_binops = frozenset(["*", "**"])

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            _spend(1)
            if isinstance(obj, LoopContext):  # a recursive loop call passes its own items
                args = tuple(map(_counted, args))
            return super().call(context, obj, *args, **kwargs)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if _result_size(operator, left, right) > _MAX_PRODUCT_SIZE:
                raise SecurityError(f"the result of {operator} would be too large")
            return super().call_binop(context, operator, left, right)

    def charged_range(*bounds: int) -> range:
        items = safe_range(*bounds)
        _spend(len(items))  # filters iterate over it without a loop
        return items

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters |= {"counted": _counted, "tojson": _to_json}
    environment.globals |= {"range": charged_range, "raise_exception": _raise_exception, "strftime_now": _strftime_now}
    del environment.globals["lipsum"]  # generates text of any length
    return environment


def _reason(problem: object) -> str:
    """What a failed template says, or the type of its error."""
    return one_line(problem, 300) or type(problem).__name__
