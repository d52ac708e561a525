"""What a malicious custodian says of a check: other sums, another garbling, or an answer that is none."""

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import cycle

from malicious_custodian import ALL, LIMIT, Asked, Change, Lie, problem, raw, saying
from werkzeug.wrappers import Response

from protocol import comparison
from protocol.committee_keys import CommitteeKey, KeyName
from protocol.comparison import Garbled, Part, Sent, Vouched
from protocol.custody import PersonRows
from protocol.encoding import encode
from protocol.messages import CheckAnswer, PrepareAnswer
from protocol.secret import Secret
from protocol.token import Pseudonym
from service.check_attempts import ANSWER_BYTES, ANSWER_LANE_BYTES
from transport.internal import CONTENT_TYPE

MOST = ANSWER_BYTES + ANSWER_LANE_BYTES

# --- of shares, rule and deposits ----------------------------------------------------------------------------------


def without_a_deposit(asked: Asked) -> CheckAnswer:
    """Leave out a deposit that it is heard about: a label that two others stand for is not its own to change."""
    (his,) = asked.view.persons
    for row in his.rows:
        rest = PersonRows(tuple(other for other in his.rows if other is not row))
        answer = asked.answer(asked.accepted, view=replace(asked.view, persons=(rest,)))
        if answer != asked.honest():
            return answer
    return asked.honest()


def without_deposits(asked: Asked) -> CheckAnswer:
    return asked.answer(asked.accepted, view=replace(asked.view, persons=(PersonRows(()),)))


def without_stamps(asked: Asked) -> CheckAnswer:
    return asked.answer(asked.accepted, view=replace(asked.view, stamp_sums={}))


SHARES = {
    "one fen more in a share": (lambda asked: asked.adding(1, asked.mine[:1]), ALL),
    "one fen less in a share": (lambda asked: asked.adding(-1, asked.mine[:1]), ALL),
    "half the ring in a share": (lambda asked: asked.adding(1 << 47, asked.mine[-1:]), ALL),
    "the limit in a share": (lambda asked: asked.adding(LIMIT, asked.mine[:1]), ALL),
    "the limit less in a share": (lambda asked: asked.adding(-LIMIT, asked.mine[:1]), ALL),
    "a fen in every share": (lambda asked: asked.adding(1, asked.mine), ALL),
    "a deposit left out": (without_a_deposit, ALL),
    "all deposits left out": (without_deposits, ALL),
    "a window of a day": (lambda asked: asked.with_rule(window_days=1), ALL),
    "a window of sixty days": (lambda asked: asked.with_rule(window_days=60), ALL),
    "more products": (lambda asked: asked.with_rule(products=("accident", "term_life")), ALL),
    "other products": (lambda asked: asked.with_rule(products=("group_accident",)), ALL),
    "policies counted": (lambda asked: asked.with_rule(measure="policy_count"), ALL),
    # The limit goes into the first group, which is garbled for by the first two alone.
    "a fen more of a limit": (lambda asked: asked.with_rule(limit=LIMIT + 1), (0, 1)),
    "a fen less of a limit": (lambda asked: asked.with_rule(limit=LIMIT - 1), (0, 1)),
    "no stamps": (without_stamps, ALL),
}


# --- of the garbling -----------------------------------------------------------------------------------------------


def flipped(data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


def recircuit(change: Callable[[Garbled], Garbled]) -> Lie:
    """Send another circuit, with the digest that belongs to it."""

    def bend(part: Part) -> Part:
        assert part.garbled is not None
        lie = change(part.garbled)
        return replace(part, garbled=lie, garbled_digest=lie.digest())

    return lambda asked: asked.with_part(bend)


def difference(asked: Asked) -> bytes:
    """Return the XOR of the two tags, which every custodian knows."""
    accepted = asked.accepted
    ((within, exceeds),) = comparison.tags(
        accepted.seed.reveal(), accepted.statement.check_id, accepted.attempt, accepted.chosen.slots, 1
    )
    return bytes(a ^ b for a, b in zip(within, exceeds, strict=True))


def turned_outputs(asked: Asked) -> CheckAnswer:
    """Exchange the tags in the output rows: what opened "within" would open "exceeds"."""
    both = difference(asked) * 2
    return recircuit(lambda one: replace(one, outputs=xor(one.outputs, both)))(asked)


def turned_k(asked: Asked) -> CheckAnswer:
    """XOR the difference of the tags into a K."""

    def bend(part: Part) -> Part:
        first, *rest = part.vouched
        return replace(part, vouched=(replace(first, masked=xor(first.masked, difference(asked) * 2)), *rest))

    return asked.with_part(bend)


def xor(one: bytes, two: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(one, two, strict=True))


def with_another_key_under_its_name(asked: Asked) -> CheckAnswer:
    key = CommitteeKey(asked.key.name, Secret(bytes(32)))
    return replace(asked, key=key).honest()


def with_another_key(asked: Asked) -> CheckAnswer:
    name = asked.key.name
    key = CommitteeKey.named(name.shard, name.omitted, name.committee_version, name.made_at, Secret(bytes(32)))
    return replace(asked, key=key).honest()


def named_otherwise(asked: Asked) -> CheckAnswer:
    answer = asked.honest()
    return replace(answer, committee_key=replace(answer.committee_key, made_at=answer.committee_key.made_at + 1))


def of_another_rule_version(asked: Asked) -> CheckAnswer:
    lanes = tuple(replace(lane, rule_version=lane.rule_version + 1) for lane in asked.accepted.statement.lanes)
    return asked.with_statement(lanes=lanes)


def of_another_person(asked: Asked) -> CheckAnswer:
    persons = tuple(replace(one, pseudonym=Pseudonym(bytes(32))) for one in asked.accepted.persons)
    return asked.answer(replace(asked.accepted, persons=persons), view=asked.view)


def answers_of_before() -> Lie:
    """Say what would have been right the last time, under this committee key and from this position."""
    last: dict[tuple[KeyName, int], CheckAnswer] = {}

    def lie(asked: Asked) -> CheckAnswer:
        honest = asked.honest()
        said = last.get((asked.key.name, asked.position), honest)
        last[asked.key.name, asked.position] = honest
        return said

    return lie


def swapped(part: Part) -> Part:
    """Exchange the groups that it sends, or those that it vouches for."""
    if len(part.sent) > 1:
        return replace(part, sent=part.sent[::-1])
    return replace(part, vouched=part.vouched[::-1])


def masks_swapped(part: Part) -> Part:
    masks = [one.masked for one in part.vouched[::-1]]
    return replace(
        part, vouched=tuple(replace(one, masked=mask) for one, mask in zip(part.vouched, masks, strict=True))
    )


def one_less(part: Part) -> Part:
    return replace(part, sent=part.sent[:-1]) if part.sent else replace(part, vouched=part.vouched[:-1])


def one_more(part: Part) -> Part:
    """Send a group where it has none to send, or vouch for one where it has none to vouch for."""
    if len(part.sent) < len(part.vouched):
        return replace(part, sent=(*part.sent, Sent(labels=bytes(768), stamp=bytes(32))))
    return replace(part, vouched=(*part.vouched, Vouched(masked=bytes(32), digests=bytes(32))))


def one_twice(part: Part) -> Part:
    """Send or vouch for one group in the place of another."""
    if len(part.sent) > 1:
        return replace(part, sent=part.sent[:1] * len(part.sent))
    return replace(part, vouched=part.vouched[:1] * len(part.vouched))


def other_stamps(part: Part) -> Part:
    return replace(part, sent=tuple(replace(one, stamp=flipped(one.stamp)) for one in part.sent))


EMPTY = Garbled(table=bytes(10_272), aes_key=bytes(16), outputs=bytes(32), vouchers=bytes(192))
FIRST, VOUCHERS, SENDERS = (0,), (1, 2, 3), (0, 1, 2)
"""Positions in A from which a lie can be told."""
CIRCUIT, SESSION, MALFORMED, KEY = "garbled circuit", "session", "a part is malformed", "committee key"
GARBLING: dict[str, tuple[Lie, tuple[int, ...], str]] = {
    "another table": (recircuit(lambda one: replace(one, table=flipped(one.table))), FIRST, CIRCUIT),
    "another AES key": (recircuit(lambda one: replace(one, aes_key=bytes(16))), FIRST, CIRCUIT),
    "the output rows exchanged": (
        recircuit(lambda one: replace(one, outputs=one.outputs[16:] + one.outputs[:16])),
        FIRST,
        CIRCUIT,
    ),
    "the tags exchanged": (turned_outputs, FIRST, CIRCUIT),
    "other hashes of K": (recircuit(lambda one: replace(one, vouchers=flipped(one.vouchers))), FIRST, CIRCUIT),
    "another digest": (lambda a: a.with_part(lambda p: replace(p, garbled_digest=bytes(32))), ALL, CIRCUIT),
    "another session": (lambda a: a.with_part(lambda p: replace(p, session_check=bytes(32))), ALL, SESSION),
    "no circuit": (lambda a: a.with_part(lambda p: replace(p, garbled=None)), FIRST, MALFORMED),
    "a circuit too many": (lambda a: a.with_part(lambda p: replace(p, garbled=EMPTY)), VOUCHERS, MALFORMED),
    "K turned": (turned_k, VOUCHERS, "a voucher's K"),
    "masked K exchanged": (lambda a: a.with_part(masks_swapped), (2, 3), "a voucher's K"),
    "groups exchanged": (lambda a: a.with_part(swapped), ALL, "shares or stamps"),
    "other stamps": (lambda a: a.with_part(other_stamps), SENDERS, "shares or stamps"),
    "a group less": (lambda a: a.with_part(one_less), ALL, MALFORMED),
    "a group more": (lambda a: a.with_part(one_more), ALL, MALFORMED),
    "a group twice": (lambda a: a.with_part(one_twice), ALL, "shares or stamps"),
    "the part of the check before": (answers_of_before(), ALL, SESSION),
    "the part of another check": (lambda a: a.with_statement(check_id=bytes(16)), ALL, SESSION),
    "the part of another attempt": (
        lambda a: a.answer(replace(a.accepted, attempt=a.accepted.attempt % 3 + 1), view=a.view),
        ALL,
        SESSION,
    ),
    "the part of another tick": (lambda a: a.answer(replace(a.accepted, tick=a.accepted.tick - 1)), ALL, SESSION),
    "the part of another day": (lambda a: a.with_statement(as_of=a.accepted.statement.as_of - 1), ALL, SESSION),
    "the part of another rule's version": (of_another_rule_version, ALL, SESSION),
    "the part of another person": (of_another_person, ALL, SESSION),
    "another committee key under the name": (with_another_key_under_its_name, ALL, SESSION),
    "another committee key": (with_another_key, ALL, KEY),
    "another name of the committee key": (named_otherwise, ALL, KEY),
}


# --- of HTTP -------------------------------------------------------------------------------------------------------


def bent(change: Callable[[bytes], bytes]) -> Change:
    """Answer with other bytes, whose length is said rightly."""
    return lambda response: Response(change(response.get_data()), content_type=CONTENT_TYPE)


def chunked(body: bytes) -> list[bytes]:
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\nTransfer-Encoding: chunked\r\n\r\n"
    return [head.encode(), f"{len(body):x}\r\n".encode(), body, b"\r\n0\r\n\r\n"]


def without_length(body: bytes) -> list[bytes]:
    return [f"HTTP/1.0 200 OK\r\nContent-Type: {CONTENT_TYPE}\r\n\r\n".encode(), body]


def dripping(body: bytes) -> Iterator[bytes]:
    return (raw(body)[place : place + 1] for place in range(len(raw(body))))


def endless_headers(_: bytes) -> Iterator[bytes]:
    yield b"HTTP/1.1 200 OK\r\n"
    yield from (b"X-Header: 1\r\n" for _ in range(101))


LINE: dict[str, tuple[Change, str]] = {
    "a byte less": (bent(lambda body: body[:-1]), "malformed"),
    "half of it": (bent(lambda body: body[: len(body) // 2]), "malformed"),
    "a byte more": (bent(lambda body: body + b"\x00"), "malformed"),
    "it and its beginning again": (bent(lambda body: body + body[:200]), "malformed"),
    "nothing": (bent(lambda _: b""), "malformed"),
    "another kind of message": (bent(lambda _: encode(PrepareAnswer(answers=(), garbled=None))), "malformed"),
    "it compressed": (
        saying(lambda body: [raw(gzip.compress(body), headers="Content-Encoding: gzip\r\n")]),
        "malformed",
    ),
    "as much as is read": (bent(lambda _: bytes(MOST)), "malformed"),
    "a byte more than is read": (saying(lambda _: [raw(b"", length=MOST + 1)]), "unreachable"),
    "a length that is not kept": (saying(lambda body: [raw(body, length=len(body) + 1)]), "unreachable"),
    "a length below zero": (saying(lambda body: [raw(body, length=-1)]), "unreachable"),
    "a length that is no number": (saying(lambda body: [raw(body, length="many")]), "unreachable"),
    "no length": (saying(without_length), "unreachable"),
    "chunks": (saying(chunked), "unreachable"),
    "a byte every twentieth of a second": (saying(dripping, pause=0.05), "timeout"),
    "continue, for ever": (saying(lambda _: cycle([b"HTTP/1.1 100 Continue\r\n\r\n"]), pause=0.01), "unreachable"),
    "headers, too many": (saying(endless_headers), "unreachable"),
    "a header, too long": (saying(lambda body: [raw(body, headers=f"X: {'x' * 70_000}\r\n")]), "unreachable"),
    "no HTTP": (saying(lambda body: [body]), "unreachable"),
    "a connection that is closed": (saying(lambda _: []), "unreachable"),
    "a connection that is reset": (saying(lambda _: [], reset=True), "unreachable"),
    "half of it and a reset": (saying(lambda body: [raw(body)[: len(body) // 2]], reset=True), "unreachable"),
    "a problem that is no JSON": (problem(b"{"), "refused"),
    "a problem that is no text": (problem(b"\xff\xfe"), "refused"),
    "a problem that is a list": (problem(b"[]"), "refused"),
    "a problem whose code is a number": (problem(b'{"code": 7}'), "refused"),
    "a problem whose code is a line of a log": (problem(b'{"code": "x\\ninsurer-01 disagrees"}'), "refused"),
    "a problem whose code is too long": (problem(json.dumps({"code": "x" * 65}).encode()), "refused"),
    "a problem nested without end": (problem(b"[" * 20_000), "refused"),
    "a problem with a number without end": (problem(b'{"code": ' + b"9" * 20_000 + b"}"), "refused"),
    "every request refused": (problem(b'{"code": "no"}', 422), "no"),
    "a budget that is not spent": (problem(b'{"code": "budget-exhausted"}', 429), "budget-exhausted"),
    "a timeout that was none": (problem(b'{"code": "timeout"}', 504), "timeout"),
}
"""The answer, and what the service notes."""
