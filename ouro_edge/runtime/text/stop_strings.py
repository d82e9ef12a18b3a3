"""Stop strings in streamed text, independent of token boundaries. Must not import the tokenizer.

`StopStrings` is the specification, `StopMatcher` the running state of one answer. The stop string that is complete
first wins, and the longest one if several are complete at the same character, so the result does not depend on how the
text is split into pieces. (Of `bcd` and `c` in "abcde", `c` wins: a stream cannot know that `bcd` will follow.)
Each string is matched by the Knuth-Morris-Pratt automaton (SIAM J. Comput. 6, 1977), with amortised one step per
character and stop string, so long strings cost nothing extra.
"""

from __future__ import annotations

from collections.abc import Sequence

from ouro_edge.errors import RequestError
from ouro_edge.runtime.checks import check_items


class StopStrings:
    """The texts that end an answer, each with its automaton. RequestError when one is empty or not a string."""

    __slots__ = ("borders", "texts")

    def __init__(self, texts: Sequence[str] | str = ()) -> None:
        texts = (texts,) if isinstance(texts, str) else tuple(check_items("stop", texts, "texts"))
        for text in texts:
            if not isinstance(text, str):
                raise RequestError(f"a stop string is {text!r}; expected text")
            if not text:
                raise RequestError("a stop string is empty; omit it, since it would stop before the first token")
        self.texts = tuple(dict.fromkeys(texts))
        self.borders = tuple(_borders(text) for text in self.texts)

    def __bool__(self) -> bool:
        return bool(self.texts)

    def start(self) -> StopMatcher:
        """New running state for one answer."""
        return StopMatcher(self)


class StopMatcher:
    """Running state of one answer: the text held back, and the progress of each automaton."""

    __slots__ = ("_held", "_matched", "_stops", "stopped")

    def __init__(self, stops: StopStrings) -> None:
        self._stops = stops
        self._matched = [0] * len(stops.texts)
        self._held = ""  # the longest suffix of the text that begins a stop string
        self.stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string is complete; after a stop, the text is empty."""
        if self.stopped:
            return "", True
        if not self._stops.texts:
            return text, False
        known = len(self._held)
        self._held += text
        for place in range(known, len(self._held)):
            hit = self._step(self._held[place])
            if hit:
                self.stopped = True
                shown, self._held = self._held[: place + 1 - hit], ""
                return shown, True
        safe = len(self._held) - max(self._matched)
        shown, self._held = self._held[:safe], self._held[safe:]
        return shown, False

    def flush(self) -> str:
        """The text held back, when the answer ended without a stop string."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._matched)
        return held

    def _step(self, character: str) -> int:
        """Advance all automata by one character; returns the length of the longest completed stop string, else 0."""
        hit = 0
        for i, (stop, borders) in enumerate(zip(self._stops.texts, self._stops.borders, strict=True)):
            n = self._matched[i]
            while n and stop[n] != character:
                n = borders[n - 1]
            n += stop[n] == character
            self._matched[i] = n
            if n == len(stop):
                hit = max(hit, n)
        return hit


def _borders(text: str) -> tuple[int, ...]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(text)
    n = 0
    for i in range(1, len(text)):
        while n and text[n] != text[i]:
            n = borders[n - 1]
        n += text[n] == text[i]
        borders[i] = n
    return tuple(borders)
