"""Stop strings against a search in the whole text."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ouro_edge.errors import RequestError
from ouro_edge.runtime.text.stop_strings import StopStrings


def oracle(text: str, stops: list[str]) -> tuple[str, bool]:
    """The text before the stop that is complete first, the longest of those that end together."""
    ends = [(text.find(stop) + len(stop), -len(stop)) for stop in stops if stop in text]
    if not ends:
        return text, False
    end, minus_length = min(ends)
    return text[: end + minus_length], True


few = st.text("ab", max_size=30)


@settings(deadline=None)  # machines may be busy
@given(st.lists(few, max_size=12), st.lists(st.text("ab", min_size=1, max_size=6), max_size=4))
def test_any_cut_of_the_text_gives_what_the_whole_gives(pieces: list[str], stops: list[str]) -> None:
    matcher = StopStrings(stops).start()
    shown, stopped, before = "", False, ""
    for piece in pieces:
        text, stopped = matcher.push(piece)
        shown, before = shown + text, before + piece
        held = before[len(shown) :]
        expected, hit = oracle(before, stops)
        assert stopped == hit
        if stopped:
            assert shown == expected
            break
        # Exactly the longest end that could begin a stop string is held back: no less, no more.
        longest = max((n for s in stops for n in range(len(s)) if before.endswith(s[:n])), default=0)
        assert (shown, len(held)) == (before[: len(before) - longest], longest)
    shown += matcher.flush()
    assert (shown, stopped) == oracle("".join(pieces), stops)


def test_a_stop_across_three_pieces() -> None:
    matcher = StopStrings(["<end>"]).start()
    assert matcher.push("one <") == ("one ", False)
    assert matcher.push("en") == ("", False)
    assert matcher.push("d> two") == ("", True)
    assert matcher.stopped
    assert matcher.push("three") == ("", True)
    assert matcher.flush() == ""


def test_a_false_alarm_is_shown_when_it_is_over() -> None:
    matcher = StopStrings(["\n\nUser:"]).start()
    assert matcher.push("a\n\nUs") == ("a", False)
    assert matcher.push("ually") == ("\n\nUsually", False)
    assert matcher.push("\n") == ("", False)
    assert matcher.flush() == "\n"
    assert matcher.flush() == ""
    assert matcher.push("\nUser:") == ("\nUser:", False)  # what was flushed is gone


def test_first_complete_stop_wins_and_the_longest_of_equals() -> None:
    assert StopStrings(["bcd", "c"]).start().push("abcde") == ("ab", True)
    assert StopStrings(["c", "bc"]).start().push("abcde") == ("a", True)


def test_without_stops_everything_passes() -> None:
    stops = StopStrings()
    assert not stops
    assert stops.start().push("text") == ("text", False)


def test_one_string_is_one_stop() -> None:
    assert StopStrings("END").texts == ("END",)
    assert StopStrings(["a", "b", "a"]).texts == ("a", "b")


def test_two_answers_do_not_share_state() -> None:
    stops = StopStrings(["ab"])
    one, other = stops.start(), stops.start()
    assert one.push("a") == ("", False)
    assert other.push("b") == ("b", False)
    assert one.push("b") == ("", True)


@pytest.mark.parametrize(("stops", "message"), [([""], "empty"), (["a", ""], "empty"), ("", "empty"), ([3], "3")])
def test_bad_stop_strings_are_refused(stops: list[str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        StopStrings(stops)


def test_long_stop_strings_cost_no_more_a_character() -> None:
    stops = StopStrings(["a" * 50_000 + "b"])
    matcher = stops.start()
    shown = ""
    for _ in range(1000):  # quadratic matching would take minutes here
        shown += matcher.push("a" * 60)[0]
    assert len(shown) == 10_000
    assert matcher.push("b") == ("", True)
