"""Rewrites a JSON schema into the form that constraints enforce and small models finish. Uses no libraries.

- An object with `properties` that says nothing about other keys has no others; without this, models invent keys until
  the limit of tokens. Where `allOf`, `anyOf`, `oneOf` or `$ref` add properties to the same object, these stay allowed.
- A whole number without a bound has the range of exact JSON numbers, so that it ends after 16 digits. An object with
  free keys has at most 32 of them, if the schema does not say more.
- `format` is an annotation: values that cannot be enforced are left out. A pattern with look-around beside a format
  that can, as zod writes for email, is left to the format.
- `unevaluatedProperties` is `additionalProperties` where no other schema applies to the object.
- `propertyNames` becomes `properties` or `patternProperties`, `uniqueItems` a choice of lists, where possible.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from itertools import combinations, islice
from typing import Any

_FORMATS = frozenset(("date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"))
_EXACT = 2**53 - 1  # every whole number up to here is exact in a double
_MAX_LISTS = 64  # choices that may replace uniqueItems
_MAX_KEYS = 32  # in an object with free keys

_SCHEMA = ("items", "additionalProperties", "contains", "unevaluatedProperties", "additionalItems", "unevaluatedItems")
_SCHEMAS = ("prefixItems", "items")
_NAMED = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_IN_PLACE = ("allOf", "anyOf", "oneOf")
_BESIDE = {*_IN_PLACE, "$ref", "$dynamicRef", "if", "not", "dependentSchemas"}  # schemas of the same object
_LOOK_AROUND = re.compile(r"\(\?<?[=!]")
_OTHER_KEYS = ("additionalProperties", "unevaluatedProperties")


class UnsupportedSchema(ValueError):
    """A keyword of the schema cannot be enforced; the message says which, and what to do."""


def enforceable(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The rewritten schema. UnsupportedSchema for uniqueItems and propertyNames that cannot be enforced.

    Parts that are not valid are returned unchanged.
    """
    rewritten = _Rewriter(schema).schema(dict(schema), frozenset(), frozenset())
    assert isinstance(rewritten, dict)
    return rewritten


def moved(schema: Any, place: str) -> Any:
    """A copy of a schema that becomes a part of another one at `place`: its references to itself follow it."""
    if isinstance(schema, list):
        return [moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {
        key: item if key in ("enum", "const", "default", "examples") else moved(item, place)
        for key, item in schema.items()
    }
    reference = copy.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        copy["$ref"] = place + reference[1:]
    return copy


class _Rewriter:
    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root

    def schema(self, node: Any, elsewhere: frozenset[str], inlined: frozenset[str]) -> Any:
        """A rewritten copy. `elsewhere` are properties that other schemas of the same object allow.

        `inlined` are the references that were replaced by their schemas on the way here.
        """
        if not isinstance(node, dict):
            return node
        result = dict(node)
        own = self._names(node, frozenset()) | elsewhere
        reference = result.get("$ref")
        if isinstance(reference, str) and own - self._target_names(reference) and reference not in inlined:
            target = self._target(reference)
            if isinstance(target, dict):  # a schema of its own, because here it must admit more properties
                del result["$ref"]
                others = result.get("allOf")
                result["allOf"] = [*(others if isinstance(others, list) else []), target]
                inlined |= {reference}
        for key in _IN_PLACE:
            if isinstance(result.get(key), list):
                result[key] = [self._branch(result, key, i, elsewhere, inlined) for i in range(len(result[key]))]
        for key in _SCHEMA:
            if isinstance(result.get(key), dict):
                result[key] = self.schema(result[key], frozenset(), frozenset())
        for key in _SCHEMAS:
            if isinstance(result.get(key), list):
                result[key] = [self.schema(item, frozenset(), frozenset()) for item in result[key]]
        for key in _NAMED:
            if isinstance(result.get(key), dict):
                result[key] = {name: self.schema(item, frozenset(), frozenset()) for name, item in result[key].items()}
        if isinstance(result.get("format"), str) and result["format"] not in _FORMATS:
            del result["format"]
        if "format" in result and isinstance(result.get("pattern"), str) and _LOOK_AROUND.search(result["pattern"]):
            del result["pattern"]
        if "unevaluatedProperties" in result and not result.keys() & _BESIDE:
            result.setdefault("additionalProperties", result["unevaluatedProperties"])
            del result["unevaluatedProperties"]
        if "propertyNames" in result:
            self._name_properties(result)
        if isinstance(result.get("properties"), dict) and not any(key in result for key in _OTHER_KEYS):
            _close(result, own)
        if "uniqueItems" in result:
            result = self._unique(result)
        return _bounded(result)

    def _branch(
        self, node: dict[str, Any], key: str, index: int, elsewhere: frozenset[str], inlined: frozenset[str]
    ) -> Any:
        """One schema of allOf, anyOf or oneOf; the branches of anyOf and oneOf exclude each other."""
        beside = dict(node)
        beside[key] = [part for i, part in enumerate(node[key]) if i != index and key == "allOf"]
        return self.schema(node[key][index], elsewhere | self._names(beside, frozenset()), inlined)

    def _names(self, node: Any, seen: frozenset[str]) -> frozenset[str]:
        """The properties that a schema allows for its object, including those of schemas in place."""
        if not isinstance(node, dict):
            return frozenset()
        properties = node.get("properties")
        found = frozenset(properties) if isinstance(properties, dict) else frozenset()
        required = node.get("required")
        found |= frozenset(name for name in required if isinstance(name, str)) if isinstance(required, list) else found
        for key in _IN_PLACE:
            for part in node[key] if isinstance(node.get(key), list) else ():
                found |= self._names(part, seen)
        reference = node.get("$ref")
        if isinstance(reference, str) and reference not in seen:
            found |= self._names(self._target(reference), seen | {reference})
        return found

    def _target_names(self, reference: str) -> frozenset[str]:
        return self._names(self._target(reference), frozenset((reference,)))

    def _target(self, reference: str) -> Any:
        """The schema that a local reference names, or None."""
        if not reference.startswith("#"):
            return None
        node: Any = self._root
        for step in reference[1:].split("/")[1:]:
            step = step.replace("~1", "/").replace("~0", "~")
            if isinstance(node, list) and step.isdecimal() and int(step) < len(node):
                node = node[int(step)]
            elif isinstance(node, dict) and step in node:
                node = node[step]
            else:
                return None
        return node

    def _resolved(self, node: Any) -> Any:
        """A schema behind a chain of plain references."""
        for _ in range(8):
            if not isinstance(node, dict) or not isinstance(node.get("$ref"), str):
                return node
            node = self._target(node["$ref"])
        return node

    def _name_properties(self, node: dict[str, Any]) -> None:
        """Replace propertyNames by keys: those of an enum, or a pattern."""
        names = self._resolved(node.pop("propertyNames"))
        known = node["properties"] if isinstance(node.get("properties"), dict) else {}
        values = node.get("additionalProperties", not known)
        listed = _values(names)
        if listed is not None:
            keys = [key for key in listed if isinstance(key, str) and (key in known or values is not False)]
            node["properties"] = {key: known.get(key, values) for key in keys}
            node["additionalProperties"] = False
            return
        rules = {key: value for key, value in names.items() if key in _NAME_RULES} if isinstance(names, dict) else {}
        if names is True or (isinstance(names, dict) and not rules):
            return  # any name
        low, high = rules.get("minLength", 0), rules.get("maxLength", "")
        pattern = rules.get("pattern", f"^.{{{low},{high}}}$")
        mixed = known or "patternProperties" in node
        if mixed or len(rules.keys() - {"minLength"}) > 1 or rules.keys() - {"pattern", "minLength", "maxLength"}:
            raise UnsupportedSchema(
                "propertyNames can only be an enum, or a pattern or length without other properties; remove it"
            )
        node["patternProperties"], node["additionalProperties"] = {pattern: values}, False

    def _unique(self, node: dict[str, Any]) -> dict[str, Any]:
        """Replace uniqueItems by a choice among the lists of an enum's values in their order."""
        unique = node.pop("uniqueItems")
        low, high = node.get("minItems", 0), node.get("maxItems")
        if unique is not True or (type(high) is int and high <= 1):
            return node
        values = _values(self._resolved(node.get("items")))
        if values is None or type(low) is not int or "prefixItems" in node:
            raise UnsupportedSchema(
                "uniqueItems can only be enforced for items with an enum; remove it, or set maxItems to 1"
            )
        distinct = [json.loads(text) for text in dict.fromkeys(json.dumps(value) for value in values)]
        high = min(high, len(distinct)) if type(high) is int else len(distinct)
        lists = [part for n in range(low, high + 1) for part in islice(combinations(distinct, n), _MAX_LISTS + 1)]
        if len(lists) > _MAX_LISTS:
            raise UnsupportedSchema(
                f"uniqueItems allows more than {_MAX_LISTS} lists of these items; remove it, or set maxItems to less"
            )
        kept = {key: value for key, value in node.items() if key not in ("items", "minItems", "maxItems", "type")}
        return {**kept, "enum": [list(part) for part in lists]}


_NAME_RULES = frozenset(("pattern", "minLength", "maxLength", "anyOf", "allOf", "oneOf", "not", "if", "$ref"))


def _values(names: Any) -> list[Any] | None:
    """The values of an enum or const."""
    if not isinstance(names, dict):
        return None
    if "const" in names:
        return [names["const"]]
    return names["enum"] if isinstance(names.get("enum"), list) else None


def _close(node: dict[str, Any], names: Iterable[str]) -> None:
    """Allow the listed properties, `names` (required, or of other schemas of the object), and no others."""
    properties = {**node["properties"], **{name: True for name in sorted(names) if name not in node["properties"]}}
    least = node.get("minProperties", 0)
    if type(least) is int and least > len(properties):
        return  # the schema asks for keys that it does not list
    node["properties"], node["additionalProperties"] = properties, False


def _bounded(node: dict[str, Any]) -> dict[str, Any]:
    """Bound what models continue without end: whole numbers, and the keys of objects that list none."""
    kind = node.get("type")
    if any(key in node for key in ("enum", "const", "$ref")):
        return node
    if kind == "integer" or (isinstance(kind, list) and "integer" in kind and "number" not in kind):
        low, high = _number(node, "minimum", "exclusiveMinimum"), _number(node, "maximum", "exclusiveMaximum")
        if low is None:
            node["minimum"] = -_EXACT if high is None or high > -_EXACT else -(10**18)
        if high is None:
            node["maximum"] = _EXACT if low is None or low < _EXACT else 10**18
    others = node.get("additionalProperties")
    maps = isinstance(node.get("patternProperties"), dict) or isinstance(others, dict) or others is True
    if maps and not node.get("properties") and "maxProperties" not in node and not node.get("required"):
        least = node.get("minProperties", 0)
        node["maxProperties"] = max(_MAX_KEYS, least) if type(least) is int else _MAX_KEYS
    return node


def _number(node: Mapping[str, Any], *keys: str) -> float | None:
    return next((node[key] for key in keys if type(node.get(key)) in (int, float)), None)
