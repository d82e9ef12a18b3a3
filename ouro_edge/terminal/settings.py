"""The settings of `/set`: options of the table, and options of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ouro_edge.errors import RequestError
from ouro_edge.runtime.option_table import Interface, Option
from ouro_edge.runtime.options import EXIT_RULES, GENERATION_OPTIONS

_CHAT: frozenset[Interface] = frozenset({"cli", "set"})
CHAT_OPTIONS: Mapping[str, Option] = {option.name: option for option in (
    Option(name="think", kind="switch", flags=("--think/--no-think",), group="conversation", interfaces=_CHAT,
           help="Set enable_thinking in the chat template.", default_text="the template's own"),
    Option(name="show_depth", kind="switch", flags=("--show-depth",), group="conversation", interfaces=_CHAT,
           help="Colour tokens by their depth; with NO_COLOR from dim to bold, in a pipe as numbers.",
           default=False),
)}  # fmt: skip
OPTIONS: Mapping[str, Option] = {
    option.setting: option
    for option in (*GENERATION_OPTIONS.values(), *CHAT_OPTIONS.values())
    if "set" in option.interfaces
}


def changed(values: Mapping[str, Any], name: str, text: str) -> dict[str, Any]:
    """The values with one option changed; the text `default` removes the value. RequestError names the mistake."""
    option = OPTIONS.get(name.removeprefix("--"))
    if option is None:
        raise RequestError(f"{name} cannot be set; expected one of {', '.join(OPTIONS)}")
    new = dict(values)
    if option.name in EXIT_RULES:  # these options replace each other
        new |= dict.fromkeys(EXIT_RULES)
    try:
        new[option.name] = option.default if text == "default" else option.read(text)
    except RequestError:
        raise
    except (KeyError, ValueError):
        raise RequestError(f"{name} is {text!r}; expected {option.expected}, or default") from None
    return new


def shown(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """One line per option: name, value, help."""
    return [(name, _text(values.get(option.name)), option.help) for name, option in OPTIONS.items()]


def _text(value: Any) -> str:
    if value is None or value == ():
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(repr, value)) if isinstance(value, tuple) else str(value)
