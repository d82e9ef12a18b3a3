"""instructor: objects by tools, by JSON schema and by JSON mode, optional and nested fields, a partial stream."""

import sys
from enum import Enum
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel

URL = sys.argv[1]


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Pet(BaseModel):
    kind: Literal["cat", "dog"]


class Person(BaseModel):
    name: Literal["Ada", "Ben"]
    colour: Colour
    pets: list[Pet] | None = None


MESSAGES = [{"role": "user", "content": "Ada likes red."}]
for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(base_url=URL, api_key="none", max_retries=0), mode=mode)
    person = client.chat.completions.create(
        model="any", response_model=Person, messages=MESSAGES, max_retries=0, max_tokens=200, strict=False
    )
    assert isinstance(person, Person), (mode, person)
client = instructor.from_openai(
    OpenAI(base_url=URL, api_key="none", max_retries=0), mode=instructor.Mode.RESPONSES_TOOLS
)
person = client.create(model="any", response_model=Person, messages=MESSAGES, max_retries=0, strict=False)
assert isinstance(person, Person)
client = instructor.from_openai(OpenAI(base_url=URL, api_key="none", max_retries=0), mode=instructor.Mode.TOOLS)
partial = client.chat.completions.create_partial(
    model="any", response_model=Pet, messages=MESSAGES, max_tokens=200, max_retries=0
)
assert list(partial)[-1].kind in ("cat", "dog")
print("ok")
