"""Translates a response request into the fields of a chat request, and what its answer repeats. Must not import models.

Fields that need what this server does not have (stored responses, background work, tools of OpenAI) are errors.
"""

from __future__ import annotations

from typing import Any

from ouro_edge.runtime.options import EXIT_RULES, GENERATION_OPTIONS
from ouro_edge.server.http.errors import ApiError, bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_ALTERNATIVES, MAX_TOOLS
from ouro_edge.server.responses.input_items import read_input

# Fields of this server that have the same name and meaning in a chat request.
_PASSED = frozenset(
    option.json_name or name for name, option in GENERATION_OPTIONS.items() if "http" in option.interfaces
) - {"max_tokens", "top_logprobs"} | {*EXIT_RULES, "loop_budget", "cache_prompt", "chat_template_kwargs", "model"}
_IGNORED = frozenset(
    "user store service_tier safety_identifier prompt_cache_key prompt_cache_retention prompt_cache_options "
    "max_tool_calls truncation client_metadata".split()
)
_UNSUPPORTED = {
    "previous_response_id": "is not supported, because nothing is stored; send the earlier items in input",
    "conversation": "is not supported, because nothing is stored; send the earlier items in input",
    "prompt": "is not supported, because nothing is stored; send instructions and input",
    "background": "is not supported; omit it, and use stream: true for long answers",
}
_LOGPROBS = "message.output_text.logprobs"


def read_request(fields: Fields) -> tuple[dict[str, Any], dict[str, Any]]:
    """The body of the chat request, and the fields that the response repeats. ApiError 400 names what is wrong."""
    for name, problem in _UNSUPPORTED.items():
        if fields.any(name):
            raise bad_field(name, problem)
    body: dict[str, Any] = {"messages": read_input(fields)}
    body |= {name: value for name in sorted(_PASSED) if (value := fields.any(name)) is not None}
    limit = fields.whole("max_output_tokens", 1)
    top, include = fields.whole("top_logprobs", 0, MAX_ALTERNATIVES), fields.texts("include", 16)
    if limit is not None:
        body["max_tokens"] = limit
    if top or _LOGPROBS in include:
        body |= {"logprobs": True, "top_logprobs": top or 0}
    tools = _tools(fields)
    choice = _tool_choice(fields)
    parallel = fields.flag("parallel_tool_calls", True)
    if tools:
        body |= {"tools": [_chat_tool(tool) for tool in tools], "parallel_tool_calls": parallel}
        body |= {"tool_choice": _chat_choice(choice)}
    elif choice not in ("auto", "none"):
        raise bad_field("tool_choice", "requires a tool, but tools is empty")
    form = _text_format(fields)
    if form["type"] != "text":
        body["response_format"] = _chat_format(form)
    metadata = fields.mapping("metadata") or {}
    reasoning = fields.mapping("reasoning") or {}
    body["stream"] = fields.flag("stream")
    if (options := fields.object("stream_options")) is not None:
        options.flag("include_obfuscation")  # asks for padding of events, which this server does not add
        options.finish()
    fields.finish(_IGNORED)
    echo = {
        "instructions": fields.any("instructions"),
        "max_output_tokens": limit,
        "metadata": metadata,
        "parallel_tool_calls": parallel,
        "previous_response_id": None,
        "reasoning": {"effort": reasoning.get("effort"), "summary": None},
        "store": False,
        "text": {"format": form},
        "tool_choice": choice,
        "tools": tools,
        "top_logprobs": top or 0,
        "truncation": "disabled",
    }
    return body, echo


def _tools(fields: Fields) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for i, item in enumerate(fields.items("tools", MAX_TOOLS) or []):
        tool = Fields(item, f"tools[{i}]")
        tool.required("type", tool.text("type"))
        tool.choice("type", ("function",), "function")
        read = {
            "type": "function",
            "name": tool.required("name", tool.text("name")),
            "description": tool.text("description"),
            "parameters": tool.mapping("parameters"),
            "strict": tool.flag("strict", True),
        }
        if any(other["name"] == read["name"] for other in found):
            raise bad_field(tool.path("name"), "is the name of another tool")
        tool.finish(("defer_loading", "allowed_callers", "output_schema"))
        found.append(read)
    return found


def _chat_tool(tool: dict[str, Any]) -> dict[str, Any]:
    names = ("name", "description", "parameters")
    return {"type": "function", "function": {name: tool[name] for name in names if tool[name] is not None}}


def _tool_choice(fields: Fields) -> Any:
    choice = fields.any("tool_choice")
    if choice is None:
        return "auto"
    if isinstance(choice, str):
        return fields.choice("tool_choice", ("auto", "none", "required"), "auto")
    named = fields.object("tool_choice")
    assert named is not None
    named.required("type", named.text("type"))
    named.choice("type", ("function",), "function")
    name = named.required("name", named.text("name"))
    named.finish()
    return {"type": "function", "name": name}


def _chat_choice(choice: Any) -> Any:
    return choice if isinstance(choice, str) else {"type": "function", "function": {"name": choice["name"]}}


def _text_format(fields: Fields) -> dict[str, Any]:
    text = fields.object("text")
    if text is None:
        return {"type": "text"}
    form = text.object("format")
    text.finish(("verbosity",))
    if form is None:
        return {"type": "text"}
    kind = form.choice("type", ("text", "json_object", "json_schema"), "text")
    if kind != "json_schema":
        form.finish()
        return {"type": kind}
    read = {
        "type": kind,
        "name": form.required("name", form.text("name")),
        "description": form.text("description"),
        "schema": form.required("schema", form.mapping("schema")),
        "strict": form.flag("strict"),
    }
    form.finish()
    return read


def _chat_format(form: dict[str, Any]) -> dict[str, Any]:
    if form["type"] == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": form["name"], "schema": form["schema"]}}


def renamed(problem: ApiError) -> ApiError:
    """An error of the chat request, with the names that the fields have in a response request."""
    for old, new in (
        ("response_format.json_schema.schema", "text.format.schema"),
        ("response_format", "text.format"),
        ("max_tokens", "max_output_tokens"),
        ("messages", "input"),
        (".function.", "."),
    ):
        problem.message = problem.message.replace(old, new)
        problem.param = problem.param.replace(old, new) if problem.param else problem.param
    return problem
