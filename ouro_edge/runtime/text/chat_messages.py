"""Messages of a chat before and after the template: their normal form, and a check that the template prints each one.

Templates concatenate contents, test `tool_calls is defined` and skip roles that they do not name, so what clients send
(null contents, null fields, arguments as JSON text, the role `developer`) is brought into the form that they expect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ouro_edge.arch.json_object import load_json
from ouro_edge.errors import RequestError, TemplateError

Message = dict[str, Any]
Render = Callable[[Sequence[Message]], str]


def normal_messages(messages: Any, source: str) -> list[Message]:
    """Copies of the messages for a template. RequestError when one is not a message.

    Contents are text: parts are joined by newlines, None becomes "" in calls and results of tools. Other fields
    that are None are left out. Arguments of calls are objects where they are JSON objects or blank. `developer` becomes
    `system` unless the template's source names it.
    """
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence):
        raise RequestError(f"messages are {type(messages).__name__}; expected a list of objects with role and content")
    found = [_normal_message(message, f"messages[{i}]") for i, message in enumerate(messages)]
    if "developer" not in source:
        for message in found:
            if message["role"] == "developer":
                message["role"] = "system"
    return found


def check_all_printed(messages: Sequence[Message], text: str, render: Render) -> None:
    """TemplateError when the template drops a message: `text` is what `render` returns for all messages.

    Found by a rendering in which a mark replaces each content and each called name, because a short content may also
    occur elsewhere in the text. A message whose mark is missing counts as printed if its content is in the text and the
    text changes without it. A template may forget the oldest turns, as Ouro-nano's does, but not a role.
    """
    marks = [f"x7f3a9c{i}c9a3f7x" for i in range(len(messages))]
    marked_messages = [_marked(message, mark) for message, mark in zip(messages, marks, strict=True)]
    marked = _try(render, marked_messages)  # None: the template reads contents or names
    missing = [i for i, mark in enumerate(marks) if mark not in (marked or "")]
    oldest = missing == list(range(len(missing))) and len(missing) < len(messages)
    for i in missing:
        if oldest and marks[i] in (_try(render, [marked_messages[i]]) or ""):
            continue
        if not _is_dropped(messages, i, text, render, unmarked=marked is None):
            continue
        raise TemplateError(
            f"the chat template ignores messages[{i}], which has the role {messages[i]['role'][:40]!r}; "
            "expected a role that the template prints at this place, such as user: change the role or the order"
        )


def _is_dropped(messages: Sequence[Message], i: int, text: str, render: Render, *, unmarked: bool) -> bool:
    message = messages[i]
    calls = bool(message.get("tool_calls") or message.get("function_call"))
    without = _try(render, [*messages[:i], *messages[i + 1 :]])
    if without is None:
        return not unmarked and not calls
    return without == text or not (calls or message["content"].strip() in text)


def _try(render: Render, messages: Sequence[Message]) -> str | None:
    try:
        return render(messages)
    except TemplateError:
        return None


def arguments_object(arguments: Any) -> Any:
    """Arguments of a call as templates expect them: an object if they are the text of one; blank text and None are {}.

    Other values are returned unchanged.
    """
    if arguments is None:
        return {}
    if not isinstance(arguments, str):
        return arguments
    if not arguments.strip():
        return {}
    try:
        value = load_json(arguments, _no_constant)
    except ValueError:
        return arguments
    return value if isinstance(value, dict) else arguments


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _normal_message(message: Any, name: str) -> Message:
    if not isinstance(message, Mapping):
        raise RequestError(f"{name} is {type(message).__name__}; expected an object with role and content")
    if not isinstance(message.get("role"), str):
        raise RequestError(f"{name} has the role {message.get('role')!r}; expected text such as 'user'")
    normal = {key: value for key, value in message.items() if value is not None}
    if normal.get("tool_calls") == []:
        del normal["tool_calls"]
    calls = normal.get("tool_calls")
    if isinstance(calls, Sequence) and not isinstance(calls, (str, bytes)):
        normal["tool_calls"] = [_normal_call(call) for call in calls]
    if "function_call" in normal:
        normal["function_call"] = _with_arguments(normal["function_call"])
    return {**normal, "content": _text(normal, name)}


def _text(message: Mapping[str, Any], name: str) -> str:
    """The content of a message as one text."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    if content is None:
        if message.get("tool_calls") or message.get("function_call") or message["role"] in ("tool", "function"):
            return ""  # a call without words, or a tool without a result
        if isinstance(message.get("refusal"), str):
            return str(message["refusal"])
        raise RequestError(f"{name} has no content; expected text or a list of text parts")
    if not isinstance(content, Sequence) or isinstance(content, (bytes, bytearray)):
        raise RequestError(f"{name}.content is {type(content).__name__}; expected text, None or a list of text parts")
    for i, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise RequestError(f"{name}.content[{i}] is {kind!r}; expected a part of type 'text' with a text")
    return "\n".join(part["text"] for part in content)


def _normal_call(call: Any) -> Any:
    if isinstance(call, Mapping) and isinstance(call.get("function"), Mapping):
        return {**call, "function": _with_arguments(call["function"])}
    return _with_arguments(call)


def _with_arguments(function: Any) -> Any:
    if isinstance(function, Mapping) and "name" in function:
        return {**function, "arguments": arguments_object(function.get("arguments"))}
    return function


def _marked(message: Message, mark: str) -> Message:
    """The message with the mark as its content and as the name of each call."""
    marked = {**message, "content": mark}
    if isinstance(calls := message.get("tool_calls"), list):
        marked["tool_calls"] = [_marked_call(call, mark) for call in calls]
    return marked


def _marked_call(call: Any, mark: str) -> Any:
    if not isinstance(call, dict):
        return call
    function = call.get("function")
    return (
        {**call, "name": mark} if not isinstance(function, dict) else {**call, "function": {**function, "name": mark}}
    )
