"""A chat becomes one text, by the Jinja template that came with the model. Knows jinja2 and errors; not the tokenizer.

A template is a program by strangers. It runs in Jinja's immutable sandbox: no attribute that leads to Python, no change
to the messages. Each loop turn and each call counts against a budget, a product or power has a largest size, and the
text has a greatest length. What stays open: one filter or method may build a large value (`"x"|center(99999999)`), also
while the template is compiled; doubling a string takes few turns; a filter over a long list takes its own time. Who
serves models by strangers limits the memory and time of the process.

The rendered text is encoded with its special tokens read as such, as everywhere: a message that spells `<|im_end|>`
ends its turn. Who cannot trust the messages takes those spellings out beforehand.
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

if TYPE_CHECKING:
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

_MAX_TEXT = 1 << 24  # characters of a rendered chat
_MAX_STEPS = 1_000_000  # loop turns and calls of one rendering
_MAX_PRODUCT = 1 << 20  # elements of a repeated string or list, bits of a number

_steps_left: ContextVar[list[int]] = ContextVar("steps_left")  # set for one rendering only


class ChatTemplate:
    """A compiled template with the names of the tokens that it may print; threads may share it.

    TemplateError when the source is no valid template, in one line.
    """

    __slots__ = ("_template", "bos_token", "eos_token", "source")

    def __init__(self, source: str, *, bos_token: str = "", eos_token: str = "") -> None:
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        try:
            self._template: jinja2.Template = _environment().from_string(source)
        except Exception as problem:  # Python's own compiler has its say too
            where = f" in line {problem.lineno}" if hasattr(problem, "lineno") else ""
            raise TemplateError(f"the chat template cannot be compiled{where}: {_reason(problem)}") from None

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of a chat; `variables` (enable_thinking, tools, ...) are handed to the template.

        A message is a mapping with a role and a content: text, None (beside tool_calls) or a list of text parts, which
        are joined by newlines. RequestError for other messages, TemplateError when the template fails or refuses them.
        """
        values: dict[str, Any] = {
            "tools": None,  # templates ask `is not none`, which is true of what is undefined
            "documents": None,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            **variables,
            "messages": _checked(messages),
            "add_generation_prompt": add_generation_prompt,
        }
        parts: list[str] = []
        length = 0
        before = _steps_left.set([_MAX_STEPS])
        try:
            for part in self._template.generate(values):
                length += len(part)
                if length > _MAX_TEXT:
                    raise TemplateError(f"the chat template printed over {_MAX_TEXT} characters; shorten the chat")
                parts.append(part)
        except TemplateError:
            raise
        except Exception as problem:  # a program by strangers may raise anything
            raise TemplateError(f"the chat template refuses the messages: {_reason(problem)}") from None
        finally:
            _steps_left.reset(before)
        return "".join(parts)


def check_variables(variables: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Variables for a chat template, from a caller. RequestError unless each has a name that is free."""
    check_kind("template", variables, Mapping, optional=True)
    for name in variables or {}:
        if not isinstance(name, str) or name in ("self", "messages"):
            raise RequestError(f"template has a variable {name!r}; wanted another name, such as 'enable_thinking'")
    return variables or {}


def _checked(messages: Any) -> list[dict[str, Any]]:
    """Copies of the messages, with lists of text parts joined."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError(f"messages are {type(messages).__name__}; wanted a list of objects with role and content")
    return [_checked_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked_message(message: Any, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{name} is {type(message).__name__}; wanted an object with role and content")
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{name} has the role {message.get('role')!r}; wanted text, such as 'user'")
    content = message.get("content")
    if isinstance(content, Sequence) and not isinstance(content, (str, bytes)):
        for i, part in enumerate(content):
            kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise RequestError(f"{name}.content[{i}] is {kind!r}; wanted a part of type 'text' with a text")
        content = "\n".join(part["text"] for part in content)
    elif content is None and not (message.get("tool_calls") or message.get("function_call")):
        raise RequestError(f"{name} has no content; wanted text, or a list of text parts")
    elif content is not None and not isinstance(content, str):
        raise RequestError(f"{name}.content is {type(content).__name__}; wanted text, None or a list of text parts")
    return {**message, "content": content}


def _spend(steps: int) -> None:
    left = _steps_left.get()
    left[0] -= steps
    if left[0] < 0:
        raise TemplateError(
            f"the chat template took over {_MAX_STEPS} steps; it loops too much, or the chat is too long"
        )


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend(1)
        yield item


def _result_size(operator: str, left: Any, right: Any) -> int:
    """Elements of a repeated string or list, bits of a number that an operator is about to make, at most."""
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
    """Hugging Face's environment for chat templates, with the budget built in. It holds no state of any chat."""
    from jinja2 import nodes
    from jinja2.compiler import CodeGenerator
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.runtime import LoopContext
    from jinja2.sandbox import ImmutableSandboxedEnvironment, safe_range

    class Generation(Extension):
        """`{% generation %}` marks the answers for training; here its body is simply printed."""

        tags = {"generation"}  # noqa: RUF012  (declared so by Jinja)

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class Counting(CodeGenerator):
        """Passes what each loop runs over through a filter that counts the turns."""

        def visit_Template(self, node: nodes.Template, frame: Any = None) -> None:  # noqa: N802  (Jinja's name)
            for loop in node.find_all(nodes.For):
                loop.iter = nodes.Filter(loop.iter, "counted", [], [], None, None, lineno=loop.lineno)
            super().visit_Template(node, frame)

    class Sandbox(ImmutableSandboxedEnvironment):
        code_generator_class = Counting
        intercepted_binops = frozenset(["*", "**"])

        def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
            _spend(1)
            if isinstance(obj, LoopContext):  # a turn of a recursive loop brings its own items
                args = tuple(map(_counted, args))
            return super().call(context, obj, *args, **kwargs)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if _result_size(operator, left, right) > _MAX_PRODUCT:
                raise SecurityError(f"the result of {operator} would be too large")
            return super().call_binop(context, operator, left, right)

    def charged_range(*bounds: int) -> range:
        items = safe_range(*bounds)
        _spend(len(items))  # filters run over it without a loop
        return items

    environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    environment.filters |= {"counted": _counted, "tojson": _to_json}
    environment.globals |= {"range": charged_range, "raise_exception": _raise_exception, "strftime_now": _strftime_now}
    del environment.globals["lipsum"]  # prints nonsense of any length
    return environment


def _reason(problem: object) -> str:
    """What a failed template says, or the type of its error."""
    return one_line(problem, 300) or type(problem).__name__
