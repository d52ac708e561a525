"""The binary endpoints of a live alliance under junk: each answer a clear refusal, nothing kept, logged or ended.

The attacker of an agent's endpoints holds the service's key, where it needs it; that of the service's, members' keys.
"""

import base64
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest
from fuzzing import KNOWN_CODES, MEMBERS, PERSON, Tally, bent, bent_bytes, chance, fuzzed, seeds
from hypothesis import given
from hypothesis import strategies as st
from insiders import Insider, service_url
from live import LiveAlliance, pids_of, wait_for_ticks, wait_until
from raw_http import BINARY, CHUNKED, Told, chunked, one, request, talk
from strategies import messages

from protocol.check import accept_call
from protocol.committee_keys import PURPOSE as KEY_PURPOSE
from protocol.committee_keys import KeyEnvelope, holders
from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.messages import (
    CheckCall,
    CheckCalls,
    CheckReplies,
    CheckRequest,
    CommitCall,
    HolderReceipts,
    PrepareAnswer,
    PrepareCall,
    Relayed,
    SignedBatch,
    SignedRelay,
)
from protocol.progress import SignedReport
from service.config import load_keys
from transport.internal import CHECK, CHECKS, COMMIT, COMMITTEE_KEY, CONTENT_TYPE, PREPARE, signed_headers
from transport.server import MAX_BODY

pytestmark = pytest.mark.alliance
pytest_plugins = ("fuzzing",)

AT_LIMIT, ABOVE = "20000000.00", "20000000.01"
"""Beside 6 x 5 million yuan deposited."""
SERVICE = {
    "/v1/checks": CheckRequest,
    "/v1/deposits": SignedBatch,
    "/v1/relay": SignedRelay,
    "/v1/watermarks": SignedReport,
}
AGENT = {
    CHECK: CheckCall,
    CHECKS: CheckCalls,
    PREPARE: PrepareCall,
    COMMIT: CommitCall,
    COMMITTEE_KEY: Relayed,
}
CANARY = "kanarienvogel77421"
"""Stands in every request that can hold it; no log may."""
HTTP_CODES = {
    "bad-request",
    "method-not-allowed",
    "not-found",
    "permanent-redirect",
    "request-entity-too-large",
    "unsupported-media-type",
}
CODES = KNOWN_CODES | HTTP_CODES


@pytest.fixture(scope="module")
def alliance(begun: LiveAlliance) -> LiveAlliance:
    wait_for_ticks()
    assert settled(begun, 1, PERSON, AT_LIMIT) == ("within", None)
    return begun


def settled(alliance: LiveAlliance, member: int, subject: tuple[str, str], proposed: str) -> tuple[str, str | None]:
    """Return a verdict, asked for again where a busy machine kept custodians from answering in time.

    With four of five that timed out, too few are left: that is no wrong verdict either.
    """
    for _ in range(8):
        verdict = alliance.verdict(member, subject, proposed)
        if verdict not in {("indeterminate", "timeout"), ("indeterminate", "too-few-custodians")}:
            break
    return verdict


def refused(tally: Tally, answer: Told, codes: Any = CODES) -> None:  # noqa: ANN401  any collection
    """Count an answer that must be a refusal below 500."""
    tally.inputs += 1
    if answer.status >= 500:
        tally.crashed += 1
        raise AssertionError(f"{answer.status} {answer.body!r}")
    if answer.status < 300:
        tally.accepts(right=False)
    tally.refuses(answer.code, codes)


def each_refused(tally: Tally, answer: bytes, codes: Any = CODES) -> None:  # noqa: ANN401  as above
    """Count replies to calls of several checks, each of which must be a refusal."""
    for reply in decode(CheckReplies, answer).replies:
        tally.inputs += 1
        if reply.answer is not None:
            tally.accepts(right=False)
        assert reply.refusal is not None
        tally.refuses(reply.refusal, codes)


# --- what must not have happened -----------------------------------------------------------------------------------


def processes(alliance: LiveAlliance) -> list[list[int]]:
    return [pids_of(alliance.state / "service")] + [
        pids_of(alliance.member_state(number)) for number in range(1, MEMBERS + 1)
    ]


def rows(alliance: LiveAlliance) -> dict[tuple[int, str], list[str]]:
    """Return all rows of all tables of all agents, once what came of the last checks is noted."""
    found = {}
    for number in range(1, MEMBERS + 1):
        wait_until(lambda number=number: not _under_way(alliance, number), 10)
    for number in range(1, MEMBERS + 1):
        with alliance.database(number) as connection:
            names = [
                row[0] for row in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            ]
            for table in names:
                found[number, table] = sorted(
                    row[0]
                    for row in connection.execute(f'SELECT t::text FROM "{table}" t')  # noqa: S608  a table's name
                    if not row[0].startswith("(directory,")  # renewed every few seconds, whatever happens
                )
    assert len(found) >= 10 * MEMBERS
    return found


def _under_way(alliance: LiveAlliance, number: int) -> bool:
    with alliance.database(number) as connection:
        return connection.execute("SELECT FROM own_answer WHERE answers IS NULL LIMIT 1").fetchone() is not None


def logs(alliance: LiveAlliance) -> dict[Path, int]:
    return {file: file.stat().st_size for file in (alliance.state / "logs").iterdir()}


def log_since(alliance: LiveAlliance, before: dict[Path, int]) -> bytes:
    return b"".join(file.read_bytes()[before.get(file, 0) :] for file in logs(alliance))


@contextmanager
def unharmed(alliance: LiveAlliance, asking: int) -> Iterator[None]:
    """Nothing ended, nothing was kept and nothing of a request was logged meanwhile; and checks are right after it."""
    running, kept, logged = processes(alliance), rows(alliance), logs(alliance)
    assert all(len(pids) == 2 for pids in running)
    yield
    assert processes(alliance) == running
    assert rows(alliance) == kept
    added = log_since(alliance, logged)
    for never in (b"Traceback", b"internal fault", b"Error handling", CANARY.encode(), CANARY.encode().hex().encode()):
        assert never not in added, added[-2000:]
    assert settled(alliance, asking, PERSON, AT_LIMIT) == ("within", None)
    assert settled(alliance, asking, PERSON, ABOVE) == ("exceeds", None)


# --- real messages, and calls that the service would sign ----------------------------------------------------------


def captured(alliance: LiveAlliance, party: str, path: str) -> bytes:
    """Return the newest message of that kind that a party took."""
    taken = [entry for entry in alliance.captured(party) if (entry["path"], entry["status"]) == (path, 200)]
    return base64.b64decode(taken[-1]["request"])


def asked_of(alliance: LiveAlliance, path: str) -> tuple[int, bytes]:
    """Return an agent with a call that it has just answered."""
    if path == CHECKS:  # in one message what it has answered by itself
        number, data = asked_of(alliance, CHECK)
        return number, encode(CheckCalls(calls=(decode(CheckCall, data),)))
    if path == CHECK:
        assert settled(alliance, 2, PERSON, AT_LIMIT) == ("within", None)
    for number in range(1, MEMBERS + 1):
        with suppress(IndexError):
            data = captured(alliance, f"insurer-{number:02d}", path)
            if path == PREPARE:  # a range check is answered once: as one asks again for what counts already
                data = encode(replace(decode(PrepareCall, data), order=None))
            if path != CHECK or time.time() - decode(CheckCall, data).signed.statement.issued_at < 10:
                return number, data
    raise AssertionError(f"nobody was called at {path}")


def call(alliance: LiveAlliance, number: int, path: str, body: bytes) -> Told:
    """Call an agent as the service does, with its key."""
    key = load_keys(alliance.state / "service").signing
    headers = signed_headers(key, f"insurer-{number:02d}", path, body, time.time())
    return one(alliance.member(number)["url"], request("POST", path, body, *headers.items()))


def test_a_call_that_the_test_signs_as_the_service_is_answered_and_an_unsigned_one_is_not(
    alliance: LiveAlliance, tally: Tally
) -> None:
    """The twin of all that follows: what is refused below is not refused for the test's own clumsiness."""
    asked = {path: asked_of(alliance, path) for path in AGENT}
    with unharmed(alliance, 1):
        for path in (PREPARE, COMMIT, COMMITTEE_KEY):
            number, data = asked[path]
            answer = call(alliance, number, path, data)
            tally.inputs += 1
            tally.accepts(right=answer.status == 200)
            refused(tally, one(alliance.member(number)["url"], request("POST", path, data, BINARY)), {"bad-signature"})
        number, data = asked[CHECK]
        refused(tally, call(alliance, number, CHECK, data), {"replayed"})
        number, data = asked[CHECKS]
        answer = call(alliance, number, CHECKS, data)
        assert answer.status == 200
        each_refused(tally, answer.body, {"replayed"})


# --- bodies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SERVICE)
def test_no_body_that_a_member_did_not_sign_does_anything_at_the_service(
    alliance: LiveAlliance, path: str, tally: Tally
) -> None:
    url, kind = service_url(alliance), SERVICE[path]
    good = captured(alliance, "service", path)
    others = [captured(alliance, "service", other) for other in SERVICE]

    @fuzzed(3, live=True)
    @given(seeds, bent(decode(kind, good)) | messages(kind), st.binary(max_size=200))
    def check(seed: int, message: Any, junk: bytes) -> None:  # noqa: ANN401
        random = chance(seed)
        bodies = [junk, good[:8] + junk, CANARY.encode() + junk, encode(message)]
        bodies += [bent_bytes(random, good, random.choice(others)) for _ in range(3)]
        for body in bodies:
            if body != good:
                refused(tally, one(url, request("POST", path, body, BINARY)), BODY_CODES)

    with unharmed(alliance, 2):
        check()


KNOWN_IDS: set[bytes] = set()
"""Deposits whose commits were captured."""
BODY_CODES = {
    "malformed",
    "bad-signature",
    "unknown-member",
    "unknown-shard",
    "stale",
    "other-manifest",
    "bad-batch",
    "bad-envelopes",
    "bad-watermark",
    "bad-report",
}


def is_lasting(alliance: LiveAlliance, number: int, message: object) -> bool:
    """Tell whether a malicious service has its way by this call: another attempt or A of a check, a lower tick, a range
    check.

    That is its part in the protocol, and tested elsewhere; here it would leave rows.
    """
    if isinstance(message, CommitCall):
        return any(item.deposit_id in KNOWN_IDS for item in message.commits)
    if isinstance(message, PrepareCall):
        return message.order is not None and abs(time.time() - message.order.issued_at) < 70
    if isinstance(message, CheckCalls):
        return any(is_lasting(alliance, number, one) for one in message.calls)
    if isinstance(message, CheckCall):
        with Insider(alliance, number) as insider:
            try:
                accept_call(insider.party, message, time.time())
            except ProtocolError:
                return False
            return True
    return False


def bent_is_refused(original: Any, sent: Any, answer: bytes) -> bool:  # noqa: ANN401  two messages of a kind
    """Say of what a holder answered whether all that was bent in it is refused."""
    if isinstance(sent, CommitCall):
        return all(item is None for item in decode(HolderReceipts, answer).receipts)
    given = decode(PrepareAnswer, answer).answers
    return all(
        told.refusal is not None or item in original.deposits for item, told in zip(sent.deposits, given, strict=True)
    )


@pytest.mark.parametrize("path", AGENT)
def test_no_call_that_was_bent_does_anything_at_an_agent_though_the_service_signs_it(
    alliance: LiveAlliance, path: str, tally: Tally
) -> None:
    number, good = asked_of(alliance, path)
    url, kind = alliance.member(number)["url"], AGENT[path]
    original = decode(kind, good)
    others = [asked_of(alliance, other)[1] for other in AGENT if other not in (CHECK, CHECKS)]
    if isinstance(original, CommitCall):
        KNOWN_IDS.update(item.deposit_id for item in original.commits)

    def tried(body: bytes) -> None:
        if body == good:
            return
        with suppress(ProtocolError):
            if is_lasting(alliance, number, decode(kind, body)):
                return
        answer = call(alliance, number, path, body)
        if answer.status == 200 and path == CHECKS:
            each_refused(tally, answer.body)
        elif answer.status == 200 and path in (PREPARE, COMMIT):
            tally.inputs += 1
            tally.accepts(right=bent_is_refused(original, decode(kind, body), answer.body))
        else:
            refused(tally, answer)

    @fuzzed(2.5, live=True)
    @given(seeds, bent(original), st.binary(max_size=200))
    def check(seed: int, message: Any, junk: bytes) -> None:  # noqa: ANN401
        random = chance(seed)
        for body in (junk, good[:8] + junk, CANARY.encode() + junk):
            refused(tally, call(alliance, number, path, body), {"malformed"})
            refused(tally, one(url, request("POST", path, body, BINARY)), {"bad-signature"})
        tried(encode(message))
        for _ in range(3):
            tried(bent_bytes(random, good, random.choice(others)))

    with unharmed(alliance, 3):
        check()


# --- headers -------------------------------------------------------------------------------------------------------


def test_only_the_services_own_headers_open_an_agent(alliance: LiveAlliance, tally: Tally) -> None:
    number, body = asked_of(alliance, PREPARE)
    url, key = alliance.member(number)["url"], load_keys(alliance.state / "service").signing
    now = int(time.time())
    good = signed_headers(key, f"insurer-{number:02d}", PREPARE, body, now)
    signature = good["Lookup-Signature"]

    def asked(kind: Any, at: Any, by: Any, *more: tuple[str, Any]) -> Told:  # noqa: ANN401  text or bytes, or none
        named = (("Content-Type", kind), ("Lookup-Time", at), ("Lookup-Signature", by), *more)
        return one(url, request("POST", PREPARE, body, *((name, value) for name, value in named if value is not None)))

    times = ["", "x", "-1", "0", "1e9", "NaN", "0x10", "9" * 30, str(2**63), str(2**64), "9" * 5000, f"{now},{now}"]
    times += [str(now - 100), str(now + 100), f"{now}.5", "\u0661", b"\xff\xfe", CANARY, None]
    signatures = ["", "0", "zz", signature[2:], signature + "00", signature[::-1], "00" * 64, "ff" * 64, "0" * 8000]
    signatures += [f"{signature},{signature}", b"\xff" * 128, CANARY, None]
    kinds = ["", "text/plain", "application/json", "multipart/form-data; boundary=x", b"\xff", CANARY, None, ";", "a/b"]
    kinds += [CONTENT_TYPE + "x", CONTENT_TYPE + "," + CONTENT_TYPE, "application/x-www-form-urlencoded"]
    with unharmed(alliance, 4):
        for at in times:
            refused(tally, asked(CONTENT_TYPE, at, signature), {"bad-signature", "stale"})
        for by in signatures:
            refused(tally, asked(CONTENT_TYPE, str(now), by), {"bad-signature"})
        for kind in kinds:
            refused(tally, asked(kind, str(now), signature), {"unsupported-media-type"})
        for doubled in good.items():
            codes = {"bad-signature", "unsupported-media-type", "not-http"}
            refused(tally, asked(*good.values(), doubled), codes)

        @fuzzed(4, live=True)
        @given(*[st.binary(max_size=40).map(lambda data: data.translate(None, b"\r\n\x00"))] * 3)
        def check(kind: bytes, at: bytes, by: bytes) -> None:
            for three in ((kind, str(now), signature), (CONTENT_TYPE, at, signature), (CONTENT_TYPE, str(now), by)):
                refused(tally, asked(*three), CODES | {"not-http"})

        check()
        for three in (good.values(), (CONTENT_TYPE.upper() + "; x=y", f" {now}", signature.upper())):
            tally.inputs += 1
            tally.accepts(right=asked(*three).status == 200)


# --- framing -------------------------------------------------------------------------------------------------------

SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
TAIL = b"0\r\n\r\n" + SMUGGLED


SMUGGLING: dict[str, tuple[bytes, list[tuple[str, str | bytes]]]] = {
    "both lengths": (TAIL, [CHUNKED, ("Content-Length", str(len(TAIL)))]),
    "both lengths, the other way": (TAIL, [("Content-Length", "4"), CHUNKED]),
    "two lengths": (TAIL, [("Content-Length", "5"), ("Content-Length", str(len(TAIL)))]),
    "a list of lengths": (TAIL, [("Content-Length", "5, 5")]),
    "a signed length": (TAIL, [("Content-Length", "+5")]),
    "a negative length": (TAIL, [("Content-Length", "-5")]),
    "a length in hex": (TAIL, [("Content-Length", "0x5")]),
    "a length with an underscore": (TAIL, [("Content-Length", "1_0")]),
    "a length in other digits": (TAIL, [("Content-Length", "\u0665")]),
    "an empty length": (TAIL, [("Content-Length", "")]),
    "chunked twice": (TAIL, [CHUNKED, CHUNKED]),
    "chunked, then something": (TAIL, [("Transfer-Encoding", "chunked, identity")]),
    "chunked, nearly": (TAIL, [("Transfer-Encoding", "xchunked")]),
    "chunked with a tab": (TAIL, [("Transfer-Encoding", b"\x0bchunked")]),
    "a space before the colon": (TAIL, [("Transfer-Encoding ", "chunked")]),
    "a folded header": (TAIL, [("X", "a\r\n Transfer-Encoding: chunked"), ("Content-Length", str(len(TAIL)))]),
    "a bare line feed": (TAIL, [("X", "a\nTransfer-Encoding: chunked"), ("Content-Length", str(len(TAIL)))]),
    "a bare carriage return": (TAIL, [("X", "a\rTransfer-Encoding: chunked"), ("Content-Length", str(len(TAIL)))]),
    "a zero byte": (TAIL, [("X", b"a\x00b"), ("Content-Length", str(len(TAIL)))]),
    "a compressed chunk": (TAIL, [("Transfer-Encoding", "gzip, chunked")]),
}


def doors(alliance: LiveAlliance) -> list[tuple[str, str]]:
    agent = alliance.member(3)["url"]
    return [(service_url(alliance), path) for path in SERVICE] + [(agent, path) for path in AGENT]


def test_no_request_is_smuggled_behind_another(alliance: LiveAlliance, tally: Tally) -> None:
    with unharmed(alliance, 5):
        for url, path in doors(alliance):
            assert [answer.status for answer in talk(url, SMUGGLED)] == [200]
            for body, headers in SMUGGLING.values():
                answers = talk(url, request("POST", path, body, BINARY, *headers, sized=False))
                assert len(answers) <= 1, "what stood in the body was answered"
                for answer in answers:
                    tally.inputs += 1
                    # An unknown transfer coding is gunicorn's own 501 (RFC 9112, section 6.1); all else is a 4xx.
                    assert answer.status < 500 or (answer.status, answer.code) == (501, "not-http")
                    tally.refuses(answer.code, CODES | {"not-http"})
    assert tally.inputs > len(SMUGGLING)


def test_requests_in_a_row_are_answered_in_a_row(alliance: LiveAlliance, tally: Tally) -> None:
    def piped(path: str, random: Random) -> tuple[bytes, str]:
        junk = CANARY.encode() + random.randbytes(random.randrange(60))
        agent = path.startswith("/internal")
        signed = "bad-signature" if agent else "malformed"
        return random.choice(
            [
                (request("POST", path, junk, BINARY), signed),
                (request("POST", path, chunked(junk, junk), BINARY, CHUNKED, sized=False), signed),
                (request("POST", path, junk, ("Content-Type", "a/b")), signed if agent else "unsupported-media-type"),
                (request("GET", path, junk), "method-not-allowed"),
                (request("POST", "/nothing", junk, BINARY), "not-found"),
                (request("POST", path, junk, BINARY, ("Expect", "100-continue")), signed),
                (request("POST", path, chunked(), BINARY, CHUNKED, sized=False), signed),
            ]
        )

    @fuzzed(3, live=True)
    @given(seeds, st.sampled_from(doors(alliance)))
    def check(seed: int, door: tuple[str, str]) -> None:
        random, (url, path) = chance(seed), door
        row = [piped(path, random) for _ in range(random.randrange(1, 6))]
        answers = talk(url, b"".join(data for data, _ in row))
        assert [answer.code for answer in answers] == [code for _, code in row]
        for answer in answers:
            refused(tally, answer)

    with unharmed(alliance, 6):
        check()


def test_a_request_that_ends_before_its_end_is_refused_or_not_answered(alliance: LiveAlliance, tally: Tally) -> None:
    @fuzzed(3, live=True)
    @given(seeds, st.sampled_from(doors(alliance)))
    def check(seed: int, door: tuple[str, str]) -> None:
        random, (url, path) = chance(seed), door
        body = CANARY.encode() + random.randbytes(random.randrange(1, 300))
        long = request(
            "POST", path, body, BINARY, ("Content-Length", str(len(body) + random.randrange(1, 9999))), sized=False
        )
        short = request("POST", path, body, BINARY, ("Content-Length", str(random.randrange(len(body)))), sized=False)
        whole = request("POST", path, chunked(body, body), BINARY, CHUNKED, sized=False)
        head = request("POST", path, body, BINARY)
        for data in (long, head[: random.randrange(1, len(head))], whole[: random.randrange(1, len(whole))]):
            answers = talk(url, data)
            assert len(answers) <= 1
            tally.inputs += not answers
            tally.refused += not answers
            for answer in answers:
                refused(tally, answer, CODES | {"not-http"})
        answers = talk(url, short)  # what is beyond the stated length is another request, and none
        refused(tally, answers[0])
        for answer in answers[1:]:
            refused(tally, answer, {"not-http"})

    with unharmed(alliance, 1):
        check()


BAD_CHUNKS = [b"zz\r\nab\r\n0\r\n\r\n", b"-1\r\nab\r\n", b"5\r\nabcdeX0\r\n\r\n", b"2;a=\x01\r\nab\r\n0\r\n\r\n"]
BAD_CHUNKS += [b"\r\n", b"f" * 9000, b"0x2\r\nab\r\n0\r\n\r\n", b"2 \r\nab\r\n0\r\n\r\n", b"0\r\nX: a\nb\r\n\r\n"]


def test_a_chunk_that_is_none_is_the_callers_fault(alliance: LiveAlliance, tally: Tally) -> None:
    with unharmed(alliance, 2):
        for url, path in doors(alliance):
            for body in BAD_CHUNKS:
                answers = talk(url, request("POST", path, body, BINARY, CHUNKED, sized=False))
                assert len(answers) == 1
                refused(tally, answers[0], {"bad-request", "bad-signature", "not-http"})


def test_a_body_above_the_limit_is_refused_and_never_read_whole(alliance: LiveAlliance, tally: Tally) -> None:
    url, path = service_url(alliance), "/v1/deposits"
    agent = alliance.member(3)["url"]
    unsigned, claim = ("Lookup-Signature", "00" * 64), ("Content-Length", str(10**15))
    too_large = {"request-entity-too-large"}
    with unharmed(alliance, 3):
        for data in (
            request("POST", path, b"", BINARY, claim, sized=False),
            request("POST", path, bytes(MAX_BODY + 1), BINARY),
        ):
            for answer in talk(url, data):
                refused(tally, answer, too_large)
        signed = (BINARY, ("Lookup-Time", str(int(time.time()))), unsigned)
        for answer in talk(agent, request("POST", PREPARE, b"", *signed, claim, sized=False)):
            refused(tally, answer, too_large)
        # In chunks, what is beyond the limit is not read: the message is one that ends early.
        for answer in talk(url, request("POST", path, chunked(*[bytes(1 << 20)] * 9), BINARY, CHUNKED, sized=False)):
            refused(tally, answer, {*too_large, "malformed"})
    assert tally.inputs >= 3


# --- methods and paths ---------------------------------------------------------------------------------------------


def test_wrong_methods_are_refused(alliance: LiveAlliance, tally: Tally) -> None:
    manifest = (service_url(alliance), "/v1/manifest")
    with unharmed(alliance, 4):
        for url, path in [*doors(alliance), manifest]:
            wrong = ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT", "FOO", "P" * 30, "post", "POST\u00ff", "P(ST"]
            for method in [*wrong, "POST" if path == manifest[1] else "GET"]:
                answer = one(url, request(method, path, b"x", BINARY))
                refused(tally, answer, {"method-not-allowed", "not-http"})


def test_paths_of_any_shape_lead_nowhere_else(alliance: LiveAlliance, tally: Tally) -> None:
    def shapes(path: str, random: Random) -> list[bytes | str]:
        at = random.randrange(1, len(path))
        junk = random.randbytes(12)
        return [
            path + "/" + quote(junk),
            path[:at] + quote(junk, safe="") + path[at:],
            path[:at] + "%" + path[at:],
            path[:at]
            + random.choice(("%00", "%2f", "%2e%2e/", "/../", "/./", "%ff", "%c0%ae", ";a", "\\"))
            + path[at:],
            path.swapcase(),
            path + "/",
            path + "?" + quote(junk) * random.randrange(200),
            path.encode() + bytes(byte | 0x80 for byte in junk),
            "/" + "a" * random.randrange(10_000),
            "/" + "%41" * random.randrange(1_000),
            "/" + CANARY,
            "*",
            f"http://{CANARY}{path}",
            path.replace(path[at], f"%{ord(path[at]):02x}"),
        ]

    @fuzzed(2, live=True)
    @given(seeds, st.sampled_from(doors(alliance)), st.sampled_from(["GET", "POST"]))
    def check(seed: int, door: tuple[str, str], method: str) -> None:
        url, path = door
        for shape in shapes(path, chance(seed)):
            refused(tally, one(url, request(method, shape, b"", BINARY)), CODES | {"not-http"})

    with unharmed(alliance, 5):
        check()


def test_a_path_with_a_slash_too_many_is_another_path(alliance: LiveAlliance, tally: Tally) -> None:
    with unharmed(alliance, 6):
        for url, path in doors(alliance):
            for shape in (path.replace("/v1/", "/v1//"), path.replace("/v1/", "/v1////")):
                refused(tally, one(url, request("POST", shape, b"", BINARY)), {"not-found"})


def test_the_manifest_is_one_whatever_is_asked_around_it(alliance: LiveAlliance, tally: Tally) -> None:
    url, expected = service_url(alliance), (alliance.state / "service" / "manifest.bin").read_bytes()

    @fuzzed(2, live=True)
    @given(st.binary(max_size=30), st.binary(max_size=30).map(lambda data: data.translate(None, b"\r\n\x00")))
    def check(junk: bytes, value: bytes) -> None:
        odd = [("Range", "bytes=0-1"), ("If-None-Match", "*"), ("Accept", "text/html"), ("Accept-Encoding", "gzip")]
        for data in (
            request("GET", "/v1/manifest?" + quote(junk), junk),
            request("GET", "/v1/manifest", junk, *odd),
            request("GET", "/v1/manifest", b"", ("X-Forwarded-For", value), ("Cookie", value)),
        ):
            answer = one(url, data)
            tally.inputs += 1
            if answer.status == 400:
                tally.refuses(answer.code, {"not-http"})
            else:
                tally.accepts(right=(answer.status, answer.body) == (200, expected))

    with unharmed(alliance, 6):
        check()
    assert tally.accepted > tally.refused


def test_other_versions_of_http_are_spoken_or_refused(alliance: LiveAlliance, tally: Tally) -> None:
    with unharmed(alliance, 1):
        for url, path in doors(alliance):
            old = request("POST", path, b"x", BINARY)
            for version in (b"1.0", b"0.9", b"2.0", b"3", b"1.10", b"1.1 ", b"x", b""):
                for answer in talk(url, old.replace(b"HTTP/1.1", b"HTTP/" + version)):
                    refused(tally, answer, {"malformed", "bad-signature", "not-http"})
            upgrade = (("Connection", "Upgrade, HTTP2-Settings"), ("Upgrade", "h2c"), ("HTTP2-Settings", ""))
            for data in (request("POST", path, b"x", BINARY, *upgrade), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
                for answer in talk(url, data):
                    refused(tally, answer, {"malformed", "bad-signature", "not-http"})
            for answer in talk(url, request("POST", path, b"x", BINARY, ("Expect", "something"))):
                refused(tally, answer, {"malformed", "bad-signature", "not-http"})


# --- what the service or a member may sign, and no store can hold ----------------------------------------------------


def test_numbers_and_texts_that_no_database_holds_are_refused_when_the_service_signs_them(
    alliance: LiveAlliance, tally: Tally
) -> None:
    number, data = asked_of(alliance, COMMIT)
    good = decode(CommitCall, data)
    unknown = replace(good, commits=(replace(good.commits[0], deposit_id=bytes(16), tick=1),))
    with unharmed(alliance, 2):
        answer = call(alliance, number, COMMIT, encode(unknown))
        tally.inputs += 1
        tally.accepts(right=decode(HolderReceipts, answer.body).receipts == (None,))
        for changes in ({"shard": 2**31}, {"shard": 2**32 - 1}, {"depositor": "a\x00b"}, {"shard": 4096}):
            refused(tally, call(alliance, number, COMMIT, encode(replace(unknown, **changes))))


def test_a_committee_key_of_a_time_that_no_database_holds_is_refused(alliance: LiveAlliance, tally: Tally) -> None:
    with Insider(alliance, 1) as any_member:
        manifest = any_member.manifest
    maker, holder = holders(manifest, 0, None)[:2]
    body = KeyEnvelope(
        shard=0, omitted=None, committee_version=1, made_at=2**40, secret=bytes(32), manifest_hash=manifest.hash
    )
    with Insider(alliance, int(maker[-2:])) as insider, unharmed(alliance, 3):
        for made_at in (2**63, 2**64 - 1):
            data = encode(body).replace((2**40).to_bytes(8, "big"), made_at.to_bytes(8, "big"))
            envelope = insider.party.channel(holder).seal(KEY_PURPOSE, manifest.hash, data, bytes(32))
            relayed = Relayed(sender=maker, envelope=envelope)
            refused(tally, call(alliance, int(holder[-2:]), COMMITTEE_KEY, encode(relayed)))


def test_a_call_about_the_holders_own_deposit_is_refused_for_good(alliance: LiveAlliance, tally: Tally) -> None:
    number, data = asked_of(alliance, PREPARE)
    own = replace(decode(PrepareCall, data), depositor=f"insurer-{number:02d}")
    with unharmed(alliance, 4):
        refused(tally, call(alliance, number, PREPARE, encode(own)), {"bad-excluded"})


# --- what is not HTTP ----------------------------------------------------------------------------------------------


def test_what_is_not_http_is_answered_as_such(alliance: LiveAlliance, tally: Tally) -> None:
    @fuzzed(3, live=True)
    @given(seeds, st.binary(max_size=200), st.sampled_from(doors(alliance)))
    def check(seed: int, junk: bytes, door: tuple[str, str]) -> None:
        url, path = door
        random = chance(seed)
        good = request("POST", path, b"x" * 40, BINARY)
        for data in (junk, junk + b"\r\n\r\n", bent_bytes(random, good, junk), bent_bytes(random, good, good)):
            if b"//" in data:
                continue  # a test of its own
            answers = talk(url, data)
            tally.inputs += not answers
            tally.refused += not answers
            for answer in answers:
                if answer.status != 501:
                    refused(tally, answer, CODES | {"not-http"})

    with unharmed(alliance, 5):
        check()


def test_nothing_of_a_request_that_is_not_http_stands_in_the_logs(alliance: LiveAlliance, tally: Tally) -> None:
    before = logs(alliance)
    for url, path in doors(alliance):
        for data in (
            f"{CANARY} nonsense\r\n\r\n".encode(),
            f"POST {path} HTTP/{CANARY}\r\n\r\n".encode(),
            request("POST", path, b"", ("X " + CANARY, "1")),
            request(CANARY.upper() + "(", path),
            request("POST", path, b"", ("Expect", CANARY)),
        ):
            for answer in talk(url, data):
                refused(tally, answer, {"not-http"})
    added = log_since(alliance, before)
    assert CANARY.encode() not in added.lower()
