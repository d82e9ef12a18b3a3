"""Nothing of one conversation reaches another: not by the cache, not when many run at once."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import ouro_edge

QUESTIONS = [
    "Ada likes Ben. Ben likes Cleo. Ada likes someone who likes who?",
    "Ada likes Ben. Ben likes Dan. Ada likes someone who likes who?",
    "Ada likes Ben. Who does Ada like?",
    "hello",
    "What can you do?",
]


def test_answers_are_those_of_a_model_on_its_own(server, nano):
    """Prompts that share beginnings, many times, at once: every answer as from a fresh sequence."""
    expected = {}
    for question in QUESTIONS:
        *tokens, done = nano.chat([{"role": "user", "content": question}], sampler=ouro_edge.Sampler(), max_tokens=40)
        expected[question] = (done.text, [token.depth for token in tokens])

    def ask(question):
        choice = server.chat(question, max_tokens=40).json()["choices"][0]
        return question, (choice["message"]["content"], choice["ouro_edge"]["depths"])

    with ThreadPoolExecutor(8) as pool:
        for question, answer in pool.map(ask, QUESTIONS * 6):
            assert answer == expected[question]


def test_samplers_and_constraints_are_not_shared(server):
    def ask(fields):
        return server.chat("hm", max_tokens=24, **fields).json()["choices"][0]["message"]["content"]

    jobs = [
        {"temperature": 2, "seed": 1},
        {"temperature": 2, "seed": 2},
        {"response_format": {"type": "json_object"}},
        {"repetition_penalty": 1.5},
        {"logit_bias": {"50": 30}},
    ]
    alone = list(map(ask, jobs))
    with ThreadPoolExecutor(5) as pool:
        for _ in range(3):
            assert list(pool.map(ask, jobs)) == alone


def test_nothing_that_users_say_is_logged(server, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    secret = "Zanzibar-4711"
    assert server.chat(f"My word is {secret}.").status_code == 200
    assert (
        server.http.post("/v1/chat/completions", json={"messages": [{"role": secret}], "x": secret}).status_code == 400
    )
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    written = "".join(record.getMessage() for record in ours) + "".join(capfd.readouterr())
    assert secret not in written and secret not in server.http.get("/metrics").text


def test_a_sequence_is_not_kept_after_an_error(serve, nano):
    class Breaking:
        """Fails after some tokens, once."""

        broken = False

        def __getattr__(self, name):
            return getattr(nano, name)

        def generate(self, *args, **options):
            for i, event in enumerate(nano.generate(*args, **options)):
                if i == 3 and not self.broken:
                    self.broken = True
                    raise MemoryError
                yield event

    server = serve(Breaking())
    refused = server.chat("What can you do?")
    assert refused.status_code == 503 and refused.json()["error"]["code"] == "out_of_memory"
    assert server.chat("What can you do?").json()["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
