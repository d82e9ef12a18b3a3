"""pydantic-ai: an agent with a tool that a scripted model calls, and native, tool and prompted output."""

import sys
from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

URL, SCRIPTED = sys.argv[1:3]


class Person(BaseModel):
    name: Literal["Ada", "Ben"]
    age: Literal[7, 8]


def check(kind: type) -> None:
    model = kind("any", provider=OpenAIProvider(base_url=URL, api_key="none"))
    for output in (NativeOutput(Person), ToolOutput(Person), Person):
        person = Agent(model, output_type=output, instructions="Be brief.").run_sync("Ada is 7.").output
        assert isinstance(person, Person), (kind, output, person)

    asked = []
    scripted = kind("any", provider=OpenAIProvider(base_url=SCRIPTED, api_key="none"))
    agent = Agent(scripted, system_prompt="Use tools.")

    @agent.tool_plain
    def find(who: str) -> str:
        """Find a person."""
        asked.append(who)
        return "in the garden"

    result = agent.run_sync("Where is Ada?")
    assert asked == ["Ada"] and result.output.strip() == "In the garden.", (kind, asked, result.output)

    both = Agent(model, output_type=NativeOutput(Person))

    @both.tool_plain
    def look(who: Literal["Ada"]) -> str:
        """Look at a person."""
        return "seven"

    try:
        both.run_sync("Ada is 7.")
    except Exception as problem:  # a tiny model may call the tool for ever; the server must not refuse
        assert "status_code: 4" not in str(problem), problem


for kind in (OpenAIChatModel, OpenAIResponsesModel):
    check(kind)
print("ok")
