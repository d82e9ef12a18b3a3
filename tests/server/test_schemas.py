"""The form in which a schema is enforced: what closes objects, bounds numbers, and replaces unsupported keywords."""

from __future__ import annotations

import json
from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

import llguidance
import openai
import pytest
from pydantic import UUID4, Base64Bytes, BaseModel, Field, IPvAnyAddress, SecretStr

from ouro_edge.server.http.errors import ApiError
from ouro_edge.server.openai.constraints import Schemas
from ouro_edge.server.openai.schemas import UnsupportedSchema, enforceable, moved

A: Any = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
B: Any = {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}
NODE: Any = {
    "type": "object",
    "properties": {"v": {"type": "boolean"}, "next": {"anyOf": [{"$ref": "#/$defs/N"}, {"type": "null"}]}},
    "required": ["v"],
}
COLORS: Any = {"enum": ["red", "green"]}


def allows(schema: Any, value: Any) -> bool:
    """Whether the grammar of a schema, as it is enforced, accepts a value (or JSON text)."""
    layout: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(enforceable(schema)), overrides=layout)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    assert not matcher.is_error(), matcher.get_error()
    text = (value if isinstance(value, str) else json.dumps(value)).encode()
    return matcher.try_consume_tokens(list(text)) == len(text) and matcher.is_accepting()


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (A, [{"a": True}], [{"a": True, "c": 1}, {}]),
        ({**A, "additionalProperties": True}, [{"a": True, "c": 1}], []),
        ({**A, "additionalProperties": {"type": "null"}}, [{"a": True, "c": None}], [{"a": True, "c": 1}]),
        ({"type": "object", "properties": {}}, [{}], [{"a": 1}]),
        ({**A, "unevaluatedProperties": False}, [{"a": True}], [{"a": True, "c": 1}]),
        ({**A, "unevaluatedProperties": {"type": "null"}}, [{"a": True, "c": None}], [{"a": True, "c": 1}]),
        ({"type": "object"}, [{}, {"a": 1, "b": [2]}], [[]]),
        ({"properties": {"a": {}}}, [{"a": 1}], [{"b": 1}]),
        ({**A, "required": ["a", "z"]}, [{"a": True, "z": [1]}], [{"a": True}, {"a": True, "z": 1, "y": 1}]),
        ({"type": "array", "items": A}, [[{"a": True}]], [[{"a": True, "c": 1}]]),
        ({"type": "array", "prefixItems": [A], "items": False}, [[{"a": True}]], [[{"a": True, "c": 1}]]),
        ({"type": "object", "additionalProperties": A}, [{"x": {"a": True}}], [{"x": {"a": True, "c": 1}}]),
        ({**A, "patternProperties": {"^x": A}}, [{"a": True, "x": {"a": True}}], [{"a": True, "c": 1}]),
        ({"allOf": [A, B]}, [{"a": True, "b": True}], [{"a": True, "b": True, "c": 1}, {"a": True}]),
        ({"allOf": [A, {"required": ["z"]}]}, [{"a": True, "z": 1}], [{"a": True}]),
        ({**A, "allOf": [B]}, [{"a": True, "b": True}], [{"a": True, "b": True, "c": 1}]),
        ({"anyOf": [A, B]}, [{"a": True}, {"b": True}], [{"a": True, "b": True}, {"a": True, "c": 1}]),
        ({**A, "anyOf": [B, {**B, "properties": {"c": {}}, "required": ["c"]}]},
         [{"a": True, "b": True}, {"a": True, "c": 5}], [{"a": True, "b": True, "c": 5}, {"a": True}]),
        ({"$defs": {"A": A}, "$ref": "#/$defs/A"}, [{"a": True}], [{"a": True, "c": 1}]),
        ({"$defs": {"A": A}, "allOf": [{"$ref": "#/$defs/A"}, B]}, [{"a": True, "b": True}], [{"a": True}]),
        ({"$defs": {"A": A}, **B, "$ref": "#/$defs/A"}, [{"b": True, "a": True}], [{"b": True, "a": True, "c": 1}]),
        ({"$defs": {"A": A}, "allOf": [{"$ref": "#/$defs/A"}], "title": "x"}, [{"a": True}], [{"a": True, "c": 1}]),
        ({"$defs": {"N": NODE}, "$ref": "#/$defs/N"}, [{"v": True, "next": {"v": True, "next": None}}],
         [{"v": True, "next": {"v": True, "w": 1}}]),
        ({"$defs": {"N": NODE}, "allOf": [{"$ref": "#/$defs/N"}, B]}, [{"v": True, "next": {"v": True}, "b": True}],
         [{"v": True, "next": {"v": True, "b": True}, "b": True}]),
        ({"type": "object", "properties": {"properties": {"type": "boolean"}, "format": {"type": "string"}}},
         [{"properties": True, "format": "x"}], [{"x": 1}]),
    ],
)  # fmt: skip
def test_objects_are_closed(schema: Any, good: list[Any], bad: list[Any]) -> None:
    before = json.dumps(schema)
    assert [value for value in good if not allows(schema, value)] == []
    assert [value for value in bad if allows(schema, value)] == []
    assert json.dumps(schema) == before


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"type": "integer"}, ["0", "-7", "9007199254740991", "-9007199254740991"], ["9007199254740992", "1" * 20]),
        ({"type": ["integer", "null"]}, ["5", "null"], ["1" * 20]),
        ({"type": "integer", "minimum": 5}, ["5", "9007199254740991"], ["4", "1" * 20]),
        ({"type": "integer", "exclusiveMaximum": 5}, ["4", "-9007199254740991"], ["5", "-" + "1" * 20]),
        ({"type": "integer", "minimum": 2**53}, [str(2**53 + 2)], ["5", "1" * 28]),
        ({"type": "integer", "maximum": -(2**53)}, [str(-(2**53) - 2)], ["-5", "-" + "1" * 28]),
        ({"type": "integer", "enum": [10**17]}, [str(10**17)], ["5"]),
        ({"type": ["integer", "number"]}, ["5", "5.5"], []),
    ],
)
def test_whole_numbers_end(schema: Any, good: list[str], bad: list[str]) -> None:
    assert [text for text in good if not allows(schema, text)] == []
    assert [text for text in bad if allows(schema, text)] == []


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "patternProperties": {"^a": {"type": "boolean"}}, "additionalProperties": False},
        {"type": "object", "additionalProperties": {"type": "boolean"}},
        {"type": "object", "additionalProperties": True},
    ],
)
def test_free_keys_end(schema: Any) -> None:
    """Their number is bounded, because a small model continues with one key after the other."""
    text = ", ".join(['"a1": true'] * 32)
    assert allows(schema, f"{{{text}}}") and not allows(schema, f'{{{text}, "a1": true}}')
    many = {**schema, "maxProperties": 40}
    assert allows(many, f'{{{text}, "a1": true}}')


FORMATS = ["uuid4", "path", "file-path", "binary", "password", "base64", "base64url", "ipvanyaddress", "uri-reference",
           "json-string", "int32", "multi-host-uri", "color", "", "unknown"]  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_that_cannot_be_enforced_is_an_annotation(name: str) -> None:
    assert allows({"type": "string", "format": name}, '"x"')
    assert allows(
        {"type": "object", "properties": {"x": {"anyOf": [{"type": "string", "format": name}]}}}, '{"x": "x"}'
    )


def test_a_pattern_with_look_around_beside_a_format_is_left_to_it() -> None:
    """What zod writes for an email address."""
    email = {"type": "string", "format": "email", "pattern": r"^(?!\.)(?!.*\.\.)[a-z.]+@[a-z]+\.[a-z]{2,}$"}
    assert allows(email, '"ada@example.org"')
    assert not allows(email, '".ada"') and not allows(email, '"a..b@example.org"')
    assert enforceable({"type": "string", "pattern": "(?=x)"}) == {"type": "string", "pattern": "(?=x)"}
    plain = {"type": "string", "format": "uuid", "pattern": "^[0-9a-f-]+$"}
    assert enforceable(plain) == plain


def test_known_formats_are_enforced() -> None:
    assert allows({"type": "string", "format": "date"}, '"2024-05-06"')
    assert not allows({"type": "string", "format": "date"}, '"today"')


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"propertyNames": COLORS, "additionalProperties": {"type": "boolean"}},
         [{}, {"red": True}, {"red": True, "green": True}], [{"blue": True}, {"red": 1}]),
        ({"propertyNames": {"const": "red"}}, [{"red": [1]}], [{"blue": 1}]),
        ({"propertyNames": {"pattern": "^a"}, "additionalProperties": {"type": "boolean"}}, [{"ab": True}], [{"b": 1}]),
        ({"propertyNames": {"maxLength": 2}}, [{"ab": 1}], [{"abc": 1}]),
        ({"propertyNames": {"minLength": 2}}, [{"ab": 1}], [{"a": 1}]),
        ({"propertyNames": {"type": "string"}}, [{"ab": 1}], []),
        ({"propertyNames": {"format": "uuid"}}, [{"ab": 1}], []),
        ({"propertyNames": COLORS, "properties": {"red": {"type": "null"}, "blue": {}}}, [{"red": None}],
         [{"red": 1}, {"blue": 1}, {"green": 1}]),
    ],
)  # fmt: skip
def test_property_names(schema: Any, good: list[Any], bad: list[Any]) -> None:
    schema = {"type": "object", **schema}
    assert [value for value in good if not allows(schema, value)] == []
    assert [value for value in bad if allows(schema, value)] == []


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"items": COLORS}, [[], ["red"], ["red", "green"]], [["red", "red"], ["blue"]]),
        ({"items": COLORS, "minItems": 1, "maxItems": 1}, [["red"], ["green"]], [[], ["red", "green"]]),
        ({"items": {"enum": [1, "1", True, 1]}}, [[1, "1", True]], [[1, 1]]),
        ({"items": {"$ref": "#/$defs/C"}, "$defs": {"C": COLORS}}, [["green"]], [["green", "green"]]),
        ({"items": {"type": "string"}, "maxItems": 1}, [["x"], []], [["x", "y"]]),
    ],
)
def test_unique_items(schema: Any, good: list[Any], bad: list[Any]) -> None:
    schema = {"type": "array", "uniqueItems": True, **schema}
    assert [value for value in good if not allows(schema, value)] == []
    assert [value for value in bad if allows(schema, value)] == []
    assert allows({**schema, "uniqueItems": False}, good[-1])


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True, "items": {"type": "string"}}, "uniqueItems can only be enforced"),
        ({"type": "array", "uniqueItems": True, "items": {"enum": list(range(9))}}, "more than 64 lists"),
        ({"type": "object", "propertyNames": {"anyOf": [COLORS, {"pattern": "x"}]}}, "propertyNames can only be"),
        ({"type": "object", "propertyNames": {"pattern": "x"}, "properties": {"a": {}}}, "propertyNames can only be"),
    ],
)
def test_what_cannot_be_enforced_is_said(schema: Any, words: str) -> None:
    with pytest.raises(UnsupportedSchema, match=words):
        enforceable({"type": "object", "properties": {"x": schema}})


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": 5}, {"properties": {"a": 5}}, {"allOf": 5}, {"allOf": [5]}, {"$ref": 5},
        {"$ref": "#/nowhere", "properties": {"a": {}}}, {"$ref": "#"}, {"allOf": [{"$ref": "#"}, A]}, {"items": 5},
        {"required": 5, "properties": {}}, {"type": 5}, {"type": "integer", "minimum": "x"}, {"minProperties": "x"},
        {"properties": {"a": {"$ref": "#/properties/a"}}}, {"uniqueItems": 5}, {"$ref": "#/allOf/7", "allOf": []},
    ],
)  # fmt: skip
def test_schemas_that_are_not_valid_do_no_harm(schema: Any) -> None:
    assert isinstance(enforceable(schema), dict)


def test_references_follow_their_schema() -> None:
    schema = {"$defs": {"A": A}, "properties": {"x": {"$ref": "#/$defs/A"}, "y": {"const": {"$ref": "#/z"}}}}
    found = moved(schema, "#/here")
    assert found["properties"]["x"] == {"$ref": "#/here/$defs/A"}
    assert found["properties"]["y"] == {"const": {"$ref": "#/z"}}
    assert moved({"$ref": "#"}, "#/here") == {"$ref": "#/here"}


class Color(Enum):
    RED, GREEN = "red", "green"


class Address(BaseModel):
    street: Literal["Elm", "Oak"]


class Person(BaseModel):
    """A model of many kinds of fields."""

    name: Literal["Ada", "Ben"]
    age: int
    home: Address
    key: UUID4 | None = None
    other: UUID | None = None
    where: IPvAnyAddress | None = None
    secret: SecretStr | None = None
    data: Base64Bytes | None = None
    colors: set[Color]
    points: dict[Color, Annotated[int, Field(ge=0, le=9)]]


def test_a_model_of_pydantic(server) -> None:
    """A plain schema without additionalProperties, as LangChain sends it, gives an object of this model."""
    schema = Person.model_json_schema()
    assert "additionalProperties" not in schema
    form: Any = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    tool: Any = {"type": "function", "function": {"name": "save", "parameters": schema}}
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        question: Any = [{"role": "user", "content": "Who is Ada?"}]
        answer = client.chat.completions.create(
            model="m", messages=question, response_format=form, max_tokens=400, temperature=1, seed=1
        ).choices[0]
        call = client.chat.completions.create(
            model="m", messages=question, tools=[tool], tool_choice="required", max_tokens=400, temperature=1, seed=1
        ).choices[0]
    assert json.loads(answer.message.content)["home"].keys() == {"street"}
    assert answer.finish_reason == "stop" and call.finish_reason == "tool_calls"
    assert json.loads(call.message.tool_calls[0].function.arguments)["home"].keys() == {"street"}
    for text in (answer.message.content, call.message.tool_calls[0].function.arguments):
        assert json.loads(text).keys() <= Person.model_fields.keys()


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "wordlevel"])
def test_a_tokenizer_that_cannot_be_constrained(nano, monkeypatch, kind) -> None:
    from dataclasses import replace

    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, pre_tokenizers

    if kind == "unigram":
        fast = Fast(models.Unigram([("<unk>", 0.0), ("▁a", -1.0)], unk_id=0))
        fast.pre_tokenizer, fast.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif kind == "wordpiece":
        fast = Fast(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
        fast.pre_tokenizer, fast.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    else:
        fast = Fast(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
        fast.pre_tokenizer = pre_tokenizers.Whitespace()
    monkeypatch.setattr(nano, "text", replace(nano.text, tokenizer_json=fast.to_str()))
    schemas = Schemas(nano)
    for param in ("response_format", "tools"):
        with pytest.raises(ApiError, match=f"{param} requires a byte-level") as refused:
            schemas.compile(A, param)
        assert (refused.value.status, refused.value.param, refused.value.code) == (400, param, "unsupported_tokenizer")
    with pytest.raises(ApiError, match="requires a byte-level"):
        schemas.compile_choice(A, "response_format", B, parallel=True)
