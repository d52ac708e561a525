"""What REST endpoints do first: how much the caller asks, what the body says, and whether it was asked before."""

import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any, TypeVar

from flask import Response
from marshmallow import Schema

from insurer_agent.agent import Agent
from insurer_agent.intake.amounts import parse_amount
from insurer_agent.intake.documents import normalise
from insurer_agent.intake.errors import IntakeError
from insurer_agent.limits import RequestLimit
from insurer_agent.rest.access import caller, current_request
from insurer_agent.store.idempotency import IdempotencyAwayError, Place, StoredAnswer
from protocol.identity import Identity
from transport.json_text import parse_json
from transport.problems import Problem
from transport.web import WholeResponse

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_JSON = 64 << 10
IDEMPOTENCY_KEY = "Idempotency-Key"
REPLAYED = "Idempotency-Replayed"
KEPT = "Idempotency-Kept"
MAX_KEY_CHARACTERS = 255


@dataclass(frozen=True)
class Reply:
    """The answer of an endpoint. One that is not `final` is not given again: asking again is meant to ask anew."""

    body: dict[str, Any]
    status: int = 200
    final: bool = True


def answer(
    agent: Agent,
    limit: RequestLimit,
    schema: Schema,
    reply: Callable[[dict[str, Any]], Reply],
    *,
    bears_repeating: bool = False,
) -> Response:
    """Answer a request whose body is JSON that fits `schema`; see `answer_read`."""

    def read(_api_key: str) -> tuple[Any, dict[str, Any]]:
        body = read_json()
        return body, schema.load(body)

    return answer_read(agent, limit, read, reply, bears_repeating=bears_repeating)


def answer_read(
    agent: Agent,
    limit: RequestLimit,
    read: Callable[[str], tuple[Any, T]],
    reply: Callable[[T], Reply],
    *,
    bears_repeating: bool = False,
) -> Response:
    """Answer a request; under an Idempotency-Key once, and again what was answered then.

    `read` is told whose the request is, by its API key, and returns what the request says as JSON, by which it is known
    again, and as `reply` takes it.

    Where it cannot be told whether it was made before, what changes policies is refused (503): an amendment that is
    repeated after a later one would undo that, and who sends policies can wait. A request that `bears_repeating` goes
    on, and its answer says that it is not kept: a check asked twice is right each time, and underwriting cannot wait.
    """
    api_key = caller().mark
    limit.take(api_key)
    body, loaded = read(api_key)
    key = _idempotency_key()
    if key is None:
        return _response(reply(loaded))
    request = current_request()
    asked = json.dumps([request.method, request.path, body], sort_keys=True).encode()
    try:
        place = agent.idempotency.begin(api_key, key, asked)
    except IdempotencyAwayError:
        if not bears_repeating:
            raise
        return _response(reply(loaded), kept=False)
    if isinstance(place, StoredAnswer):
        stored = json.loads(place.body)
        response = _response(Reply(stored["body"], stored["status"]))
        response.headers[REPLAYED] = "true"
        return response
    kept = False
    try:
        given = reply(loaded)
        if given.final:
            kept = _kept(agent, place, given)
    finally:
        if not kept:
            with suppress(Problem):  # it lapses by itself
                agent.idempotency.release(place)
    return _response(given, kept=kept)


class Seat:
    """Holds one of `places` for a block; refuses (`busy`) where none is free within so many seconds."""

    def __init__(self, places: BoundedSemaphore, seconds: float) -> None:
        self._places = places
        self._seconds = seconds

    def __enter__(self) -> None:
        if not self._places.acquire(timeout=self._seconds):
            raise Problem(503, "busy", "too many checks at once", hint="try again shortly", retry_after=1)

    def __exit__(self, *_: object) -> None:
        self._places.release()


def _kept(agent: Agent, place: Place, given: Reply) -> bool:
    """Keep an answer; where that fails it is given all the same, as what it tells of is done."""
    try:
        return agent.idempotency.keep(place, json.dumps({"status": given.status, "body": given.body}).encode())
    except Problem as problem:
        log.warning("an answer is not kept under its Idempotency-Key: %s", problem.code)
        return False


def _response(reply: Reply, *, kept: bool = True) -> Response:
    response = WholeResponse(json.dumps(reply.body) + "\n", reply.status, content_type="application/json")
    if not kept:
        response.headers[KEPT] = "false"
    return response


def _idempotency_key() -> str | None:
    key = current_request().headers.get(IDEMPOTENCY_KEY)
    if key is not None and not (0 < len(key) <= MAX_KEY_CHARACTERS and key.isascii() and key.isprintable()):
        detail = f"an Idempotency-Key has 1 to {MAX_KEY_CHARACTERS} printable ASCII characters"
        raise Problem(400, "idempotency-key-malformed", detail, hint="a UUID is a good key")
    return key


def read_json(most: int = MAX_JSON) -> Any:  # noqa: ANN401  any JSON value; the schema says which are good
    """Return the request's body, of so many bytes at most."""
    request = current_request()
    request.max_content_length = most
    hint = "send Content-Type: application/json, UTF-8, each name once"
    if not request.is_json:
        raise Problem(415, "unsupported-media-type", "the body is not declared as JSON", hint=hint)
    try:
        return parse_json(request.get_data())
    except (ValueError, RecursionError):
        raise Problem(400, "not-json", "the body is not JSON", hint=hint) from None


def subject_of(subject: dict[str, str]) -> Identity:
    """Return the person that a request's `subject` is."""
    try:
        return normalise(subject["document_type"], subject["document_number"])
    except IntakeError as error:
        raise Problem(422, error.code, error.reason, hint="correct subject.document_number") from None


def amount_of(agent: Agent, name: str, text: str, *, minimum: int) -> int:
    """Return the fen of a request's amount, from `minimum` to the manifest's cap."""
    try:
        return parse_amount(text, minimum=minimum, maximum=agent.party.manifest.terms.deposit_cap)
    except IntakeError as error:
        raise Problem(422, error.code, error.reason, hint=f'write {name} in yuan, as in "3000000.00"') from None
