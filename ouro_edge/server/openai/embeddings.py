"""/v1/embeddings: texts in, vectors of length 1 out."""

from __future__ import annotations

import base64
from typing import Any

from ouro_edge.runtime.exits.loop_budget import position_rule
from ouro_edge.runtime.request import token_budget
from ouro_edge.server.engine import Engine
from ouro_edge.server.http.errors import bad_field
from ouro_edge.server.http.fields import Fields
from ouro_edge.server.limits import MAX_INPUTS
from ouro_edge.server.openai.prompts import read_prompts
from ouro_edge.server.openai.replies import ResponseHeader
from ouro_edge.server.options import IGNORED, read_exit


class Embeddings:
    """The endpoint's handler."""

    def __init__(self, engine: Engine, header: ResponseHeader) -> None:
        self._engine, self._header = engine, header

    async def __call__(self, fields: Fields) -> dict[str, Any]:
        model = self._engine.model
        fields.text("model")
        form = fields.choice("encoding_format", ("float", "base64"), "float")
        width = model.config.hidden_size
        if fields.whole("dimensions", 1) not in (None, width):
            raise bad_field("dimensions", f"is not {width}, the only size of this model; omit it")
        policy = position_rule(read_exit(fields, model, self._engine.default_exit))
        prompts = await self._engine.prepare(read_prompts, fields, "input", model, MAX_INPUTS)
        fields.finish(IGNORED)
        for prompt in prompts:
            token_budget(len(prompt.ids), None, model.config.max_positions)
        inputs = [prompt.ids for prompt in prompts]
        vectors = await self._engine.compute(lambda cancel: model.embed(inputs, exit=policy, cancel=cancel))
        count = sum(map(len, inputs))
        data = [
            {
                "object": "embedding",
                "index": i,
                # little-endian float32, as OpenAI's clients expect
                "embedding": vector.tolist() if form == "float" else base64.b64encode(vector.astype("<f4")).decode(),
            }
            for i, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "data": data, "model": self._header.model, "usage": usage}
