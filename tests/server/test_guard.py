"""Who may come in: hosts, keys, origins; and the page's policy."""

from __future__ import annotations

import base64
import hashlib

import pytest

from ouro_edge.server.http.guard import host_name
from ouro_edge.server.http.page import joined_page, page_response, policy
from ouro_edge.server.limits import Access
from ouro_edge.server.listen import is_loopback

LOCAL = frozenset(("127.0.0.1", "localhost"))


@pytest.mark.parametrize(
    ("host", "name"),
    [("localhost", "localhost"), ("LocalHost:80", "localhost"), ("127.0.0.1:8080", "127.0.0.1"), ("[::1]:80", "::1"),
     ("evil.example:8080", "evil.example"), ("127.0.0.1.evil.example", "127.0.0.1.evil.example"), ("", "")],
)  # fmt: skip
def test_host_names(host, name):
    assert host_name(host) == name


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_loopback(host, expected):
    assert is_loopback(host) is expected


def test_other_hosts_are_refused(serve):
    server = serve(access=Access(hosts=LOCAL))
    for path in ("/", "/health", "/v1/models", "/metrics"):
        refused = server.http.get(path, headers={"Host": f"evil.example:{server.port}"})
        assert refused.status_code == 403 and refused.json()["error"]["code"] == "host_not_allowed"
        assert server.http.get(path, headers={"Host": "localhost:1"}).status_code == 200
    assert serve(access=Access()).http.get("/health", headers={"Host": "any.example"}).status_code == 200


def test_the_key(serve):
    server = serve(access=Access(api_key="sëcret"))
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "sëcret".encode()},
                    {"Authorization": "Basic sëcret".encode()}, {"Authorization": b"Bearer \xff"}):  # fmt: skip
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            refused = server.http.get(path, headers=headers)
            assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
            assert refused.headers["www-authenticate"] == "Bearer"
    assert server.http.get("/v1/models", headers={"Authorization": "Bearer sëcret".encode()}).status_code == 200
    assert server.http.get("/health").status_code == server.http.get("/").status_code == 200
    assert server.chat().status_code == 401


def test_other_origins_need_leave(serve):
    preflight = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "content-type,authorization"}  # fmt: skip
    closed = serve(access=Access(hosts=LOCAL))
    answer = closed.http.options("/v1/chat/completions", headers=preflight)
    assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers
    opened = serve(access=Access(hosts=LOCAL, origins=("https://app.example",), api_key="k"))
    answer = opened.http.options("/v1/chat/completions", headers=preflight)
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == "https://app.example"
    other = opened.http.options("/v1/chat/completions", headers={**preflight, "Origin": "https://other.example"})
    assert "access-control-allow-origin" not in other.headers


def test_a_page_may_run_its_own_scripts_only():
    script, style = "alert('ü')", "p { color: red }"
    html = f"<html><style>{style}</style><p>x</p><script type=module>{script}</script></html>"
    response = page_response(html)
    rules = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    for name, text in (("script-src", script), ("style-src", style)):
        assert rules[name] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert (
        rules["default-src"] == "'none'" and rules["connect-src"] == "'self'" and rules["frame-ancestors"] == "'none'"
    )
    assert response.body.decode() == html
    assert "script-src 'none'" in policy("<p>nothing</p>")


def test_without_a_page_the_root_says_where_the_api_is(tmp_path):
    assert joined_page(tmp_path) is None and b"/v1" in page_response(None).body
