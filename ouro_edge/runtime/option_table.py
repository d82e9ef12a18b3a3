"""One option as every interface needs it: name, kind, range, default, help. Must not import click or a model.

The fields of a dataclass are the table: `option` adds to a field the facts that are not in its type, and `table` reads
them. So an option is defined once, and the command line, `/set`, the server, the llm plugin and docs/options.md follow.
Must not import NumPy or click, because `ouro-edge --help` imports this module.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from numbers import Integral, Real
from types import MappingProxyType, NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ouro_edge.errors import RequestError

Kind = Literal["number", "whole", "text", "texts", "switch", "choice", "biases"]
Group = Literal["depth", "sampling", "answer", "loading", "conversation"]
Interface = Literal["cli", "set", "http", "llm"]
EVERYWHERE: frozenset[Interface] = frozenset(get_args(Interface))

_KINDS: Mapping[Any, Kind] = {
    float: "number",
    int: "whole",
    str: "text",
    bool: "switch",
    tuple[str, ...]: "texts",
    Mapping[int, float]: "biases",
}
_SWITCH = {"on": True, "yes": True, "true": True, "1": True, "off": False, "no": False, "false": False, "0": False}
_READERS: Mapping[Kind, Callable[[str], Any]] = {
    "number": float,
    "whole": int,
    "text": str,
    "choice": str,
    "texts": lambda text: (text,),
    "switch": lambda text: _SWITCH[text.lower()],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option: its name in each interface, its values and its meaning."""

    name: str  # the Python keyword; also the option of the llm plugin
    help: str  # one short sentence
    kind: Kind
    group: Group
    default: Any = None
    default_text: str = ""  # the default in words, if the value does not explain itself
    flags: tuple[str, ...] = ()  # on the command line; "--a/--no-a" for a switch with three states
    json_name: str = ""  # the field of a request, if it is not the name
    metavar: str | None = None
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    interfaces: frozenset[Interface] = EVERYWHERE

    @property
    def setting(self) -> str:
        """The name in `/set`: the long flag without its dashes."""
        return self.flags[-1].split("/")[0].removeprefix("--") if self.flags else self.name

    @property
    def expected(self) -> str:
        """The accepted values in words."""
        if self.kind == "choice":
            return f"{', '.join(self.choices[:-1])} or {self.choices[-1]}"
        words: dict[Kind, str] = {"number": "a number", "whole": "a whole number", "text": "text", "texts": "texts",
                                  "switch": "on or off", "biases": "a mapping of token ids to numbers"}  # fmt: skip
        bounds = ""
        if self.minimum is not None:
            bounds = f" of at least {self.minimum:g}"
            if self.maximum is not None:
                bounds = f" from {self.minimum:g} to {self.maximum:g}"
        return words[self.kind] + bounds

    def check(self, value: Any) -> None:
        """RequestError unless `value` is accepted."""
        if value is None and self.default is None:
            return
        if not self._takes(value):
            from ouro_edge.runtime.checks import shown

            raise RequestError(f"{self.name} is {shown(value)}; expected {self.expected}")

    def read(self, text: str) -> Any:
        """The value of a user's text. ValueError or KeyError for another kind, RequestError when out of range."""
        value = _READERS[self.kind](text)
        self.check(value)
        return value

    def _takes(self, value: Any) -> bool:
        match self.kind:
            case "switch":
                return isinstance(value, bool)
            case "text":
                return isinstance(value, str)
            case "choice":
                return isinstance(value, str) and value in self.choices
            case "texts":
                return isinstance(value, tuple) and all(isinstance(text, str) for text in value)
            case "biases":
                return isinstance(value, Mapping)
            case "number" | "whole":
                kind: type = Real if self.kind == "number" else Integral
                return isinstance(value, kind) and not isinstance(value, bool) and self._in_range(value)

    def _in_range(self, value: Any) -> bool:
        low, high = self.minimum, self.maximum
        return value == value and (low is None or value >= low) and (high is None or value <= high)


def option(default: Any, help: str, *flags: str, **more: Any) -> Any:
    """A dataclass field that is an option; `more` are fields of Option. The annotation gives kind and choices."""
    about = MappingProxyType({"help": help, "flags": flags, **more})
    if isinstance(default, dict):
        return field(default_factory=dict, hash=False, metadata=about)
    return field(default=default, metadata=about)


def table(options: type) -> Mapping[str, Option]:
    """The options of a dataclass by name, in order of its fields."""
    hints, found = get_type_hints(options), {}
    for each in fields(options):
        kind = _without_none(hints[each.name])
        literal = get_origin(kind) is Literal
        found[each.name] = Option(
            name=each.name,
            kind="choice" if literal else _KINDS[kind],
            choices=get_args(kind) if literal else (),
            default={} if each.default is MISSING else each.default,
            **each.metadata,
        )
    return MappingProxyType(found)


def _without_none(hint: Any) -> Any:
    parts = get_args(hint)
    return next(part for part in parts if part is not NoneType) if NoneType in parts else hint


def check_all(options: Any, known: Mapping[str, Option]) -> None:
    """RequestError unless the value of every field is accepted by its option."""
    for name, each in known.items():
        each.check(getattr(options, name))
