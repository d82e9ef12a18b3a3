"""LangChain: an answer, a stream, a tool loop, structured output by every method, and the Responses API."""

import sys
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from pydantic import BaseModel

URL = sys.argv[1]


class Person(BaseModel):
    """A person."""

    name: Literal["Ada", "Ben"]
    age: Literal[7, 8]


@tool
def find(who: Literal["Ada", "Ben"]) -> str:
    """Find a person."""
    return f"{who} is here"


for responses in (False, True):
    model = ChatOpenAI(base_url=URL, api_key="none", model="any", max_retries=0, use_responses_api=responses)
    assert model.invoke("hello").text.strip()
    chunks = list(model.stream("hello"))
    assert len(chunks) > 2 and "".join(chunk.text for chunk in chunks) == model.invoke("hello").text
    assert model.invoke("hello").usage_metadata["total_tokens"] > 0

    forced = model.bind_tools([find], tool_choice="find")
    question = HumanMessage("Where is Ada?")
    first = forced.invoke([question])
    [call] = first.tool_calls
    assert call["name"] == "find" and call["args"]["who"] in ("Ada", "Ben"), first
    result = ToolMessage(find.invoke(call["args"]), tool_call_id=call["id"])
    second = model.invoke([question, first, result], max_tokens=5)
    assert not second.tool_calls and isinstance(second.text, str)
    streamed = None
    for chunk in forced.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == call["args"], streamed

    for method in ("json_schema", "function_calling"):
        for strict in (None, True):
            person = model.with_structured_output(Person, method=method, strict=strict).invoke("Ada is 7.")
            assert isinstance(person, Person), (method, strict, person)
    both = model.bind_tools([find], strict=True, response_format=Person) if not responses else None
    if both is not None:
        answer = both.invoke("Ada is 7.")
        assert answer.tool_calls or answer.additional_kwargs["parsed"], answer
found = ChatOpenAI(base_url=URL, api_key="none", model="any", max_retries=0, max_tokens=40)
plain = found.with_structured_output({"title": "P", "type": "object", "properties": {"a": {"enum": [1]}},
                                      "required": ["a"]}, method="json_schema")  # fmt: skip
assert plain.invoke("x") == {"a": 1}
print("ok")
