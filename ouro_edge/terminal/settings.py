"""What /set can change, under the names that the command line uses. Knows values; what they do is others' affair."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ouro_edge.errors import RequestError

_YES = {"on": True, "yes": True, "true": True, "1": True, "off": False, "no": False, "false": False, "0": False}


def _switch(text: str) -> bool:
    return _YES[text.lower()]


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise ValueError
    return count


def _texts(text: str) -> tuple[str, ...]:
    return (text,)


@dataclass(frozen=True, slots=True)
class Option:
    """One thing that can be set: its name in Python, how its text is read, and what it does."""

    keyword: str
    read: Callable[[str], Any]
    wanted: str
    help: str


OPTIONS: Mapping[str, Option] = {
    "temp": Option("temperature", float, "a number", "temperature; 0 is greedy"),
    "top-k": Option("top_k", int, "a whole number", "sample from the K most likely tokens"),
    "top-p": Option("top_p", float, "a number", "sample from the likeliest tokens with this probability"),
    "min-p": Option("min_p", float, "a number", "drop tokens less likely than this share of the likeliest"),
    "repeat-penalty": Option("repetition_penalty", float, "a number", "penalty on tokens seen before; 1 is off"),
    "seed": Option("seed", int, "a whole number", "make sampling repeatable"),
    "max-tokens": Option("max_tokens", _count, "a whole number from 1", "longest answer"),
    "stop": Option("stop", _texts, "a text", "end the answer before this text"),
    "exit-threshold": Option("exit_threshold", float, "a number", "stop looping when the gate reaches it"),
    "exit": Option("rule", str, "a rule", "agreement, confidence:P, entropy:NATS, change:SHARE or weighted"),
    "loops": Option("loops", int, "a whole number", "exactly this many loops for every token"),
    "loop-budget": Option("loop_budget", float, "a number", "at most this many loops a token on average"),
    "think": Option("think", _switch, "on or off", "ask the chat template to let the model think"),
    "show-depth": Option("show_depth", _switch, "on or off", "tint tokens by the loops they took"),
}
_DEPTH_RULES = ("exit_threshold", "rule", "loops")  # each replaces the others


def changed(values: Mapping[str, Any], name: str, text: str) -> dict[str, Any]:
    """The values with one option changed; the text `default` takes a setting back. RequestError names the mistake."""
    option = OPTIONS.get(name.removeprefix("--"))
    if option is None:
        raise RequestError(f"{name} cannot be set; wanted one of {', '.join(OPTIONS)}")
    new = dict(values)
    if option.keyword in _DEPTH_RULES:
        new |= dict.fromkeys(_DEPTH_RULES)
    try:
        new[option.keyword] = _unset(option) if text == "default" else option.read(text)
    except (KeyError, ValueError):
        raise RequestError(f"{name} is {text!r}; wanted {option.wanted}, or default") from None
    return new


def shown(values: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """A line for each option: name, value, help."""
    return [(name, _text(values.get(option.keyword)), option.help) for name, option in OPTIONS.items()]


def _unset(option: Option) -> Any:
    return () if option.read is _texts else None


def _text(value: Any) -> str:
    if value is None or value == ():
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    return " ".join(map(repr, value)) if isinstance(value, tuple) else str(value)
