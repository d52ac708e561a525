"""The applications' Flask answers as Flask does."""

import secrets

import pytest
from flask import Flask, Response, request, session

from transport import web
from transport.problems import Problem

HEADERS = {
    "a host": {"Host": "agent.example:8101"},
    "no host": {"Host": ""},
    "a host of characters that none has": {"Host": "a b"},
    "a host that is none": {"Host": f"{'a' * 64}.example"},
    "a web socket": {"Connection": "Upgrade", "Upgrade": "websocket"},
    "another protocol": {"Connection": "Upgrade", "Upgrade": "h2c"},
}
ADDRESSES = (
    ("GET", "/here/x"),
    ("HEAD", "/here/x"),
    ("OPTIONS", "/here/x"),
    ("POST", "/here/x"),
    ("GET", "/here/x?y=z"),
    ("GET", "//here/x"),
    ("GET", "/here//x"),
    ("GET", "/here/%E4%B8%AD%20%2F"),
    ("GET", "/here/%FF"),
    ("GET", "/refused"),
    ("GET", "/faulty"),
    ("GET", "/nowhere"),
    ("GET", "/"),
)


def made(app: Flask, kind: type[Response]) -> Flask:
    web.register(app)

    @app.get("/here/<path:name>")
    def here(name: str) -> Response:
        told = f"{request.method} {request.path} {name} {request.query_string!r} {request.host}"
        return kind(told, 201, {"X-Told": "so"}, content_type="text/plain")

    @app.get("/refused")
    def refused() -> Response:
        raise Problem(429, "rate-limited", "too much", retry_after=3)

    @app.get("/faulty")
    def faulty() -> Response:
        raise ZeroDivisionError

    return app


@pytest.mark.parametrize("headers", HEADERS.values(), ids=HEADERS)
def test_whatever_is_asked_it_is_answered_as_flask_does(headers: dict[str, str]) -> None:
    ours = made(web.PlainFlask("ours"), web.WholeResponse).test_client()
    flasks = made(Flask("flask"), Response).test_client()
    for method, address in ADDRESSES:
        answers = [client.open(address, method=method, headers=headers) for client in (ours, flasks)]
        ours_told, flask_told = [(one.status, sorted(one.headers), one.get_data()) for one in answers]
        assert ours_told == flask_told, (method, address)


def test_there_are_no_sessions() -> None:
    app = web.PlainFlask("ours")
    app.secret_key = secrets.token_bytes(16)  # with which Flask would have some

    @app.get("/")
    def view() -> str:
        with pytest.raises(RuntimeError):
            session["name"] = "someone"
        return str(len(session))

    answer = app.test_client().get("/")
    assert (answer.get_data(), answer.headers.get("Set-Cookie")) == (b"0", None)
