"""JSON of unknown origin: nesting is bounded before the parser sees it."""

from __future__ import annotations

import json

import pytest

from ouro_edge.arch.json_object import MAX_NESTING, is_nested_too_deeply, load_json


def nested(levels: int) -> str:
    return '{"a": [' * (levels // 2) + "[" * (levels % 2) + "]" * (levels % 2) + "]}" * (levels // 2)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_as_many_levels_as_allowed_are_read_in_every_encoding(encoding: str) -> None:
    assert load_json(nested(MAX_NESTING).encode(encoding)) == json.loads(nested(MAX_NESTING))
    with pytest.raises(ValueError, match="more than 64 levels"):
        load_json(nested(MAX_NESTING + 1).encode(encoding))


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"a":' * 50_000, '{"\\"": ' * 100, '["]]]]", ' * 65])
def test_deep_texts_never_reach_the_parser(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser would recurse, and finalisers that run at its deepest point would fail."""
    monkeypatch.setattr(json, "loads", lambda *_, **__: pytest.fail("parsed"))
    with pytest.raises(ValueError, match="levels deep"):
        load_json(text)


@pytest.mark.parametrize(
    "value", ["[" * 500, '"' * 3 + "[{" * 500, "\\" * 9 + "[" * 99, "字" * 500, [[]] * 500, {"]": "["}]
)
def test_brackets_in_strings_and_side_by_side_do_not_count(value: object) -> None:
    for text in (json.dumps([value]), json.dumps([value], ensure_ascii=False)):
        assert load_json(text) == load_json(text.encode()) == load_json(text.encode("utf-16")) == [value]


def test_an_unfinished_string_is_an_ordinary_error() -> None:
    assert not is_nested_too_deeply('"' + "[" * 500)
    with pytest.raises(json.JSONDecodeError, match="Unterminated"):
        load_json('"' + "[" * 500)
