"""Hypothesis strategies for the bodies of requests: right values, wrong ones, and junk."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

Strategy = st.SearchStrategy[Any]

JUNK: Strategy = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(["\ud800", "</tool_call>", "<think>", "\x00", "auto", "-1", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
TEXT: Strategy = st.text(max_size=12) | st.sampled_from(["hello", "Ada likes Ben.", "\ud83d", "é" * 3, " ", "x" * 600])


def record(required: dict[str, Strategy], optional: dict[str, Strategy]) -> Strategy:
    """Objects with these fields, sometimes with junk in one of them, without one, or with another one."""
    few = st.lists(st.sampled_from(sorted(optional)), max_size=3, unique=True) if optional else st.just([])
    whole = few.flatmap(lambda chosen: st.fixed_dictionaries({**required, **{name: optional[name] for name in chosen}}))
    names = [*required, *optional]
    wrong = st.builds(lambda one, name, value: {**one, name: value}, whole, st.sampled_from([*names, "x"]), JUNK)
    lacking = st.builds(lambda one, name: {k: v for k, v in one.items() if k != name}, whole, st.sampled_from(names))
    return st.one_of(*[whole] * 14, wrong, lacking)


def _schemas(inner: Strategy) -> Strategy:
    names = st.sampled_from(["a", "b", "$ref", "", "é"])
    return st.fixed_dictionaries(
        {},
        optional={
            "type": st.sampled_from(
                ["object", "array", "string", "integer", "number", "boolean", "null", ["string", "null"]]
            ),
            "properties": st.dictionaries(names, inner, max_size=2),
            "required": st.lists(names, max_size=2),
            "additionalProperties": st.booleans() | inner,
            "patternProperties": st.dictionaries(names, inner, max_size=1),
            "propertyNames": inner,
            "items": inner,
            "prefixItems": st.lists(inner, max_size=2),
            "uniqueItems": st.booleans(),
            "minItems": st.integers(-1, 3),
            "maxItems": st.integers(-1, 3),
            "minProperties": st.integers(0, 3),
            "maxProperties": st.integers(0, 3),
            "enum": st.lists(JUNK, max_size=3),
            "const": JUNK,
            "minimum": st.integers(-5, 5),
            "exclusiveMaximum": st.floats(-5, 5),
            "multipleOf": st.integers(-1, 3),
            "minLength": st.integers(0, 3),
            "maxLength": st.integers(0, 5),
            "pattern": st.sampled_from(["^a+$", "(", "[z-a]", "\\d{2}", ".*", "(?=x)"]),
            "format": st.sampled_from(["date", "uuid", "email", "uuid4", "x"]),
            "anyOf": st.lists(inner, max_size=2),
            "allOf": st.lists(inner, max_size=2),
            "oneOf": st.lists(inner, max_size=2),
            "not": inner,
            "if": inner,
            "then": inner,
            "$ref": st.sampled_from(["#", "#/$defs/a", "#/properties/a", "http://x", ""]),
            "$defs": st.dictionaries(names, inner, max_size=1),
            "title": TEXT,
            "default": JUNK,
            "nullable": st.booleans(),
            "x-guidance": JUNK,
        },
    )


SCHEMA: Strategy = st.recursive(
    st.sampled_from([{"type": "string", "maxLength": 3}, {"type": "boolean"}, {"enum": [1, "a"]}, {}, True, False]),
    _schemas,
    max_leaves=5,
)
NAME = st.sampled_from(["find", "ask", "", "a b", "x" * 80])
FUNCTION = record({"name": NAME}, {"parameters": SCHEMA, "description": TEXT, "strict": st.booleans()})
CALL = record(
    {
        "id": TEXT,
        "type": st.just("function"),
        "function": record(
            {"name": NAME, "arguments": st.sampled_from(["{}", "", "x", '{"a": 1e999}', "[1]"]) | TEXT}, {}
        ),
    },
    {},
)
PART = record({"type": st.sampled_from(["text", "image_url", "input_text", "output_text"])}, {"text": TEXT})
MESSAGE = record(
    {
        "role": st.sampled_from(["user", "assistant", "system", "developer", "tool", "x"]),
        "content": TEXT | st.none() | st.lists(PART, max_size=2),
    },
    {"tool_calls": st.lists(CALL, max_size=2), "tool_call_id": TEXT, "name": TEXT, "reasoning_content": TEXT},
)
SAMPLING: dict[str, Strategy] = {
    "temperature": st.floats(0, 3),
    "top_p": st.floats(0, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "seed": st.integers(-(2**63), 2**64),
    "repetition_penalty": st.floats(0.1, 3),
    "logit_bias": st.dictionaries(st.integers(0, 800).map(str), st.floats(-120, 120), max_size=3),
    "stop": TEXT | st.lists(TEXT, max_size=3),
    "stream": st.booleans(),
    "stream_options": st.just({"include_usage": True}),
    "loops": st.integers(0, 5),
    "exit": st.sampled_from(["full", "gate:0.5", "depth:2", "confidence:0.9,floor=2", "x:1"]),
    "exit_threshold": st.floats(0, 1),
    "loop_budget": st.floats(0, 5),
    "lens": st.integers(0, 21),
    "cache_prompt": st.booleans(),
    "user": TEXT,
    "metadata": JUNK,
    "store": st.booleans(),
    "model": TEXT,
    "frequency_penalty": st.sampled_from([0, 0.5]),
}
FORM = record(
    {"type": st.sampled_from(["json_schema", "json_object", "text"])},
    {"json_schema": record({"name": NAME, "schema": SCHEMA}, {"strict": st.booleans()}), "schema": SCHEMA},
)
CHOICE = st.sampled_from(["none", "auto", "required", {"type": "function", "function": {"name": "find"}}, "x"])
CHAT = record(
    {"messages": st.lists(MESSAGE, max_size=4), "max_tokens": st.integers(1, 12)},
    {
        **SAMPLING,
        "tools": st.lists(record({"type": st.just("function"), "function": FUNCTION}, {}), max_size=2),
        "tool_choice": CHOICE,
        "parallel_tool_calls": st.booleans(),
        "response_format": FORM,
        "n": st.integers(0, 3),
        "logprobs": st.booleans(),
        "top_logprobs": st.integers(0, 21),
        "rollout": st.booleans(),
        "chat_template_kwargs": st.dictionaries(TEXT, JUNK, max_size=2),
    },
)
IDS = st.lists(st.integers(-1, 800), max_size=8)
COMPLETION = record(
    {"prompt": TEXT | IDS | st.lists(TEXT | IDS, max_size=3), "max_tokens": st.integers(0, 12)},
    {
        **SAMPLING,
        "echo": st.booleans(),
        "logprobs": st.integers(0, 6),
        "n": st.integers(0, 3),
        "best_of": st.integers(0, 2),
        "suffix": TEXT,
    },
)
EMBEDDING = record(
    {"input": TEXT | IDS | st.lists(TEXT | IDS, max_size=3)},
    {"encoding_format": st.sampled_from(["float", "base64", "x"]), "dimensions": st.integers(0, 200)},
)
ITEM = st.one_of(
    record(
        {
            "role": st.sampled_from(["user", "assistant", "system", "developer"]),
            "content": TEXT | st.lists(PART, max_size=2),
        },
        {"type": st.just("message"), "id": TEXT},
    ),
    record(
        {"type": st.just("function_call"), "call_id": st.sampled_from(["c1", "c2"]), "name": NAME, "arguments": TEXT},
        {},
    ),
    record({"type": st.just("function_call_output"), "call_id": st.sampled_from(["c1", "c2"]), "output": TEXT}, {}),
    record({"type": st.sampled_from(["reasoning", "item_reference", "x"]), "id": TEXT}, {}),
)
RESPONSE = record(
    {"input": TEXT | st.lists(ITEM, max_size=4), "max_output_tokens": st.integers(1, 12)},
    {
        **{name: SAMPLING[name] for name in ("temperature", "top_p", "stream", "seed", "loops", "store", "metadata")},
        "instructions": TEXT,
        "top_logprobs": st.integers(0, 21),
        "include": st.lists(TEXT, max_size=2),
        "tools": st.lists(
            record(
                {"type": st.sampled_from(["function", "web_search"]), "name": NAME, "parameters": SCHEMA},
                {"strict": st.booleans(), "description": TEXT},
            ),
            max_size=2,
        ),
        "tool_choice": st.sampled_from(["none", "auto", "required", {"type": "function", "name": "find"}]),
        "text": record(
            {
                "format": record(
                    {"type": st.sampled_from(["json_schema", "json_object", "text"]), "name": NAME, "schema": SCHEMA},
                    {},
                )
            },
            {"verbosity": TEXT},
        ),
        "previous_response_id": TEXT,
        "reasoning": JUNK,
        "parallel_tool_calls": st.booleans(),
    },
)
BODIES: dict[str, Strategy] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETION,
    "/v1/embeddings": EMBEDDING,
    "/v1/responses": RESPONSE,
}
