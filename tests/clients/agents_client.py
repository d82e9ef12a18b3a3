"""OpenAI's Agents SDK: a tool loop, streamed and not, over the Responses API and over chat completions."""

import asyncio
import sys
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI
from pydantic import BaseModel

URL, SCRIPTED = sys.argv[1:3]
set_tracing_disabled(True)


class Person(BaseModel):
    name: Literal["Ada", "Ben"]
    age: Literal[7, 8]


async def check(kind: type) -> None:
    asked = []

    @function_tool
    def find(who: str) -> str:
        """Find a person."""
        asked.append(who)
        return "in the garden"

    client = AsyncOpenAI(base_url=URL, api_key="none", max_retries=0)
    typed = Agent(name="P", instructions="Answer.", model=kind("any", client), output_type=Person)
    assert isinstance((await Runner.run(typed, "Ada is 7.")).final_output, Person)
    scripted = kind("any", AsyncOpenAI(base_url=SCRIPTED, api_key="none", max_retries=0))
    settings = ModelSettings(temperature=0.2, max_tokens=100)
    agent = Agent(name="F", instructions="Use tools.", model=scripted, tools=[find], model_settings=settings)
    result = await Runner.run(agent, "Where is Ada?")
    assert asked == ["Ada"] and result.final_output.strip() == "In the garden.", (kind, asked, result.final_output)
    stream = Runner.run_streamed(agent, "Where is Ada?")
    events = [event.type async for event in stream.stream_events()]
    assert len(asked) == 2 and stream.final_output.strip() == "In the garden." and "raw_response_event" in events


for kind in (OpenAIResponsesModel, OpenAIChatCompletionsModel):
    asyncio.run(check(kind))
print("ok")
