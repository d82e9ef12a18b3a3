"""What is left to do of a batch: the input is read once in advance, and compared with what the output holds.

Per line of the input only a few bytes are kept: a hash of its custom_id (64 bits) and what is known about the line.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from ouro_edge.arch.json_object import load_json
from ouro_edge.errors import RequestError, one_line
from ouro_edge.server.batch.lines import Line, custom_id_of, read_lines


class BatchInput:
    """The lines of an input file, and which of them are finished."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed = 0  # finished lines without an answer
        keys, filled = array("Q"), bytearray()  # by line number - 1; key 0: no custom_id
        try:
            with path.open("rb") as file:
                for line in read_lines(file):
                    blank = line.number - 1 - len(keys)
                    keys.extend([0] * blank + [_key(custom_id_of(line))])
                    filled.extend(bytes(blank) + b"\1")
        except OSError as problem:
            raise RequestError(f"{path} cannot be read: {problem.strerror or problem}") from None
        self._keys = np.frombuffer(keys, np.uint64) if keys else np.zeros(0, np.uint64)
        self._filled = np.frombuffer(bytes(filled), np.bool_)
        self._order = np.argsort(self._keys, kind="stable")  # equal keys in the order of their lines
        ordered = self._keys[self._order]
        self._repeats = np.zeros(len(self._keys), np.bool_)
        self._repeats[self._order[1:]] = (ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)
        self._done = np.zeros(len(self._keys), np.bool_)

    def __len__(self) -> int:
        return int(self._filled.sum())

    @property
    def done(self) -> int:
        """Number of finished lines."""
        return int(self._done.sum())

    def pending(self) -> Generator[Line, None, None]:
        """The lines that are not finished, in order, each read when it is requested."""
        with self.path.open("rb") as file:
            for line in read_lines(file):
                if line.number <= len(self._done) and not self._done[line.number - 1]:
                    yield line

    def is_repeat(self, line: Line) -> bool:
        """Whether an earlier line has the same custom_id."""
        return bool(self._repeats[line.number - 1])

    def finish(self, number: int, failed: bool) -> None:
        """Count a line as finished."""
        self._done[number - 1] = True
        self.failed += failed

    def resume(self, output: Path, lines: Iterable[bytes]) -> None:
        """Count the lines of an existing output as finished. RequestError if it was not made from this input."""
        for count, data in enumerate(lines, start=1):
            try:
                found = load_json(data)
                number, failed = self._number(found), (found["response"] or {}).get("status_code") != 200
            except (ValueError, KeyError, TypeError, AttributeError):
                raise RequestError(
                    f"{output} exists and its line {count} is not one of a batch output: "
                    "choose another name, or --overwrite"
                ) from None
            if number is None:
                what = f"custom_id {one_line(found['custom_id'], 60)!r}" if found["custom_id"] else "an error"
                raise RequestError(
                    f"{output} exists and was not made from {self.path}: its line {count} has {what} that the input "
                    "does not have; choose another name, or --overwrite"
                )
            if not self._done[number - 1]:
                self.finish(number, failed)

    def _number(self, answer: dict[str, Any]) -> int | None:
        """The number of the input line that an output line answers; None if there is none."""
        custom_id, error = answer["custom_id"], answer["error"]
        key = _key(custom_id)
        if error is not None:
            number = int(error["line"])
            fits = 0 < number <= len(self._keys) and self._filled[number - 1] and self._keys[number - 1] == key
            return number if fits else None
        place = int(np.searchsorted(self._keys, np.uint64(key), sorter=self._order))
        if not key or place == len(self._order) or self._keys[self._order[place]] != key:
            return None
        return int(self._order[place]) + 1


def _key(custom_id: str | None) -> int:
    """A number above 0 for a custom_id, 0 for none."""
    if custom_id is None:
        return 0
    return int.from_bytes(blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big") or 1
