"""The output of a response as items, and the events that announce them. Must not import models.

Deltas of a chat answer arrive in order; each kind (reasoning, text, call) opens an item and closes the one before.
"""

from __future__ import annotations

import uuid
from typing import Any

Event = dict[str, Any]


class OutputItems:
    """Running state of one response's output: deltas in, events out, finished items in `items`."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self._open: str | None = None  # "reasoning" or "message": the type of the last item while it is open
        self._logprobs: list[dict[str, Any]] = []  # of tokens whose text has not appeared yet

    def push(self, delta: dict[str, Any], logprobs: list[dict[str, Any]], more: dict[str, Any]) -> list[Event]:
        """The events of one delta of a chat answer; `more` is added to events with text."""
        events: list[Event] = []
        if thought := delta.get("reasoning_content"):
            events += self._start("reasoning")
            self._part()["text"] += thought
            events.append(self._in_part("response.reasoning_text.delta", delta=thought, **more))
        else:
            self._logprobs += logprobs
        if text := delta.get("content"):
            events += self._start("message")
            part, tokens = self._part(), self._logprobs
            self._logprobs = []
            part["text"] += text
            part["logprobs"] += tokens
            events.append(self._in_part("response.output_text.delta", delta=text, logprobs=tokens, **more))
        for call in delta.get("tool_calls", ()):
            events += self._call(call)
        return events

    def finish(self, status: str) -> list[Event]:
        """The events that close the last item, with the status "completed" or "incomplete"."""
        events = self._close(status)
        if not self.items:  # an answer without text still has a message
            events += self._start("message") + self._close(status)
        return events

    def _start(self, kind: str) -> list[Event]:
        if self._open == kind:
            return []
        events = self._close("completed")
        if kind == "reasoning":
            item: dict[str, Any] = {
                "id": _new_id("rs"),
                "type": kind,
                "summary": [],
                "content": [],
                "status": "in_progress",
            }
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            item = {"id": _new_id("msg"), "type": kind, "role": "assistant", "content": [], "status": "in_progress"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        self.items.append(item)
        self._open = kind
        events.append(self._added())
        events.append(self._in_part("response.content_part.added", part=dict(part)))
        item["content"] = [part]
        return events

    def _close(self, status: str) -> list[Event]:
        if self._open is None:
            return []
        part, item = self._part(), self.items[-1]
        if self._open == "reasoning":
            done = self._in_part("response.reasoning_text.done", text=part["text"])
        else:
            done = self._in_part("response.output_text.done", text=part["text"], logprobs=part["logprobs"])
        item["status"], self._open = status, None
        return [done, self._in_part("response.content_part.done", part=part), self._item_event("done")]

    def _call(self, call: dict[str, Any]) -> list[Event]:
        """Calls arrive whole, so their arguments are one delta."""
        events = self._close("completed")
        name, arguments = call["function"]["name"], call["function"]["arguments"]
        item = {"id": _new_id("fc"), "type": "function_call", "call_id": call["id"], "name": name, "arguments": "",
                "status": "in_progress"}  # fmt: skip
        self.items.append(item)
        place = {"item_id": item["id"], "output_index": len(self.items) - 1}
        events.append(self._added())
        events.append({"type": "response.function_call_arguments.delta", **place, "delta": arguments})
        item["arguments"], item["status"] = arguments, "completed"
        events.append({"type": "response.function_call_arguments.done", **place, "name": name, "arguments": arguments})
        events.append(self._item_event("done"))
        return events

    def _added(self) -> Event:
        return {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": dict(self.items[-1])}

    def _item_event(self, what: str) -> Event:
        return {"type": f"response.output_item.{what}", "output_index": len(self.items) - 1, "item": self.items[-1]}

    def _in_part(self, kind: str, **more: Any) -> Event:
        place = {"item_id": self.items[-1]["id"], "output_index": len(self.items) - 1, "content_index": 0}
        return {"type": kind, **place, **more}

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = self.items[-1]["content"][0]
        return part


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex}"
