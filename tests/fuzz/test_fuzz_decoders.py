"""Whatever bytes or text come from outside: a refusal with a known code, or the value that they are the encoding of."""

import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuzzing import FACTOR, Tally, bent, bent_bytes, chance, counts_of, fuzzed, places, seeds, value_at
from hypothesis import given
from hypothesis import strategies as st
from strategies import POINTS, binary, messages, scalars
from test_comparison import HONEST, OVER, UNDER
from test_encoding import every_kind
from world import NOW, make_world, name, person, seeded

from protocol import deposit as steps
from protocol import group, signing, voprf
from protocol.channel import OVERHEAD
from protocol.check import Verdict, check_context
from protocol.committee_keys import PURPOSE as KEY_PURPOSE
from protocol.committee_keys import KeyEnvelope, receive
from protocol.comparison import Disagreement, Part
from protocol.encoding import Seq, decode, encode
from protocol.enrolment import enrol, read_enrolment
from protocol.errors import ProtocolError
from protocol.group import Element
from protocol.identity import MAX_NUMBER_BYTES, DocumentType, Identity, salt_check, shard_of
from protocol.manifest import AdminPins, SignedManifest, Terms, open_manifest, sign_terms
from protocol.messages import CheckAnswer, CheckOutcome
from protocol.secret import Secret
from protocol.token import SchnorrProof, Token, blind, verify_unblinder
from protocol.voprf import DleqProof
from service.admin.cli import main
from transport.internal import message_of, service_message_of
from transport.peers import Call, Peers, Reply, Unreachable

pytest_plugins = ("fuzzing",)

MALFORMED = ("malformed",)
SECONDS_AN_INPUT = 0.5
"""Of this process alone, and far above what the slowest input takes."""
BYTES_A_BYTE, BYTES_BESIDE = 24, 64 << 10
"""What decoding may take of memory: so much a byte of the input (a small number is an object), and so much beside."""
WORLD = make_world(8, shards=1)


# --- messages ------------------------------------------------------------------------------------------------------


@every_kind
def test_a_bent_message_is_refused_as_malformed_or_is_the_one_encoding_of_another(
    kind: type[Any], tally: Tally
) -> None:
    @fuzzed(0.4)
    @given(messages(kind), messages(kind), seeds)
    def check(value: Any, other: Any, seed: int) -> None:  # noqa: ANN401
        data, random, started = encode(value), chance(seed), time.process_time()
        tally.tries(lambda: decode(kind, data), lambda read: read == value, ())
        for _ in range(25):
            changed = bent_bytes(random, data, encode(other))
            tally.tries(lambda: decode(kind, changed), lambda read: encode(read) == changed, MALFORMED)  # noqa: B023  called at once
        assert time.process_time() - started < 26 * SECONDS_AN_INPUT

    check()


@contextmanager
def frugal(size: int) -> Iterator[None]:
    """The block takes no more memory than decoding that many bytes may."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= BYTES_BESIDE + BYTES_A_BYTE * size


def test_a_decoder_that_takes_memory_for_what_a_count_claims_is_noticed() -> None:
    with pytest.raises(AssertionError), frugal(40):
        assert len(bytearray(1 << 20)) > 40


@every_kind
def test_no_count_makes_a_decoder_take_memory_for_what_is_not_there(kind: type[Any], tally: Tally) -> None:
    @fuzzed(0.2)
    @given(messages(kind))
    def check(value: Any) -> None:  # noqa: ANN401
        data, found = counts_of(value)
        assert data == encode(value)
        assert decode(kind, data) == value  # whose reader is made by now, which takes memory too
        changed = [item for count in found[:40] for item in count.absurd(data)]
        for item in [data, *changed]:
            with frugal(len(item)):
                tally.tries(lambda: decode(kind, item), lambda got: encode(got) == item, MALFORMED)  # noqa: B023

    check()


def read_sequence(codec: Seq, item: object, number: int) -> object:
    """Read a sequence of so many equal items from its bytes."""
    one: list[bytes] = []
    codec._codec.write(item, one)
    whole = number.to_bytes(4, "big") + b"".join(one) * number
    got, end = codec.read(whole, 0)
    assert end == len(whole)
    return got


@every_kind
def test_sequences_hold_as_many_as_they_may_and_not_one_more_or_less(kind: type[Any], tally: Tally) -> None:
    @fuzzed(0.05)
    @given(messages(kind))
    def check(value: Any) -> None:  # noqa: ANN401
        tally.tries(lambda: decode(kind, encode(value)), lambda read: read == value, ())
        for place, codec in places(value):
            if isinstance(codec, Seq) and value_at(value, place):
                item, least, most = value_at(value, place)[0], codec._count._least, codec._count._most
                for number in {max(0, least - 1), least, min(most, 1024), most + 1 if most <= 1024 else least}:
                    tally.tries(
                        lambda: read_sequence(codec, item, number),  # noqa: B023  called at once
                        lambda got: got == (item,) * number,  # noqa: B023
                        () if least <= number <= most else MALFORMED,
                    )

    check()


# --- what is signed or sealed --------------------------------------------------------------------------------------

ADMINS = {f"admin-{number}": Secret(seeded(("admin", number))(32)) for number in range(3)}
PINS = AdminPins({admin: signing.public_key(key) for admin, key in ADMINS.items()}, 2)
TERMS = WORLD.manifest.terms


def signed_manifest(terms: Terms, *admins: str) -> bytes:
    signatures = tuple(sign_terms(terms, admin, ADMINS[admin]) for admin in admins or ADMINS)
    return encode(SignedManifest(terms=encode(terms), signatures=signatures))


def test_a_manifest_that_was_bent_on_its_way_is_refused_whatever_was_bent(tally: Tally) -> None:
    good = signed_manifest(TERMS)
    tally.tries(lambda: open_manifest(good, PINS, NOW), lambda got: got.terms == TERMS, ())

    @fuzzed(3)
    @given(seeds)
    def check(seed: int) -> None:
        random = chance(seed)
        for _ in range(10):
            changed = bent_bytes(random, good, good)
            # What is not signed may still be bent: a name that nobody pins, or a third signature left out.
            tally.tries(
                lambda: open_manifest(changed, PINS, NOW),  # noqa: B023  called at once
                lambda got: got.terms == TERMS,
                ("malformed", "bad-signature", "under-signed"),
            )

    check()
    assert tally.refused > 100 * FACTOR


def test_what_admins_sign_is_a_consistent_manifest_or_is_refused(tally: Tally) -> None:
    @fuzzed(3)
    @given(st.one_of(bent(TERMS, names={"insurer-01", "insurer-02", "accident", "group of 1"}), messages(Terms)))
    def check(terms: Terms) -> None:
        data = signed_manifest(terms)
        codes = ("bad-manifest", "manifest-expired", "manifest-from-the-future", "manifest-older")
        tally.tries(lambda: open_manifest(data, PINS, NOW, 1), lambda got: encode(got.terms) == encode(terms), codes)

    check()
    assert tally.refused > 0
    assert tally.accepted > 0


def test_an_envelope_opens_as_it_was_sealed_or_not_at_all(tally: Tally) -> None:
    sender, receiver = WORLD.party(1), WORLD.party(2)

    @fuzzed(3)
    @given(st.binary(max_size=100), st.text(max_size=5), st.binary(max_size=20), binary(32), seeds)
    def check(body: bytes, purpose: str, header: bytes, salt: bytes, seed: int) -> None:
        sealed, random = sender.channel(name(2)).seal(purpose, header, body, salt), chance(seed)
        channel = receiver.channel(name(1))
        tally.tries(lambda: channel.open(purpose, header, sealed), lambda got: got == body, ())
        for size in (0, 1, 31, 32, 33, OVERHEAD - 1, len(sealed)):
            junk = random.randbytes(size)
            tally.tries(lambda: channel.open(purpose, header, junk), lambda _: False, ("bad-envelope",))  # noqa: B023
        for other in (bent_bytes(random, sealed, sealed), sealed[:-1], sealed + b"\x00"):
            if other != sealed:
                tally.tries(lambda: channel.open(purpose, header, other), lambda _: False, ("bad-envelope",))  # noqa: B023
        for others in ((purpose + "x", header), (purpose, header + b"x")):
            tally.tries(lambda: channel.open(*others, sealed), lambda _: False, ("bad-envelope",))  # noqa: B023
        tally.tries(
            lambda: sender.channel(name(2)).open(purpose, header, sealed), lambda _: False, ("bad-envelope",)
        )  # back to its sender

    check()


def test_bytes_that_a_maker_seals_as_a_committee_key_are_one_or_are_refused(tally: Tally) -> None:
    slots = WORLD.manifest.committee(0).slots
    maker, holder = WORLD.members[slots[0]].party, WORLD.members[slots[1]].party
    key = WORLD.members[slots[0]].committee_keys[0, None]
    good = KeyEnvelope(
        shard=0,
        omitted=None,
        committee_version=1,
        made_at=key.name.made_at,
        secret=key.secret.reveal(),
        manifest_hash=WORLD.manifest.hash,
    )

    def received(body: bytes) -> Any:  # noqa: ANN401
        envelope = maker.channel(holder.id).seal(KEY_PURPOSE, WORLD.manifest.hash, body, bytes(32))
        return receive(holder, maker.id, envelope)

    tally.tries(lambda: received(encode(good)), lambda got: got == key, ())

    @fuzzed(3)
    @given(st.binary(max_size=120), seeds)
    def check(junk: bytes, seed: int) -> None:
        random = chance(seed)
        for body in (junk, *(bent_bytes(random, encode(good), junk) for _ in range(8))):
            tally.tries(
                lambda: received(body),  # noqa: B023  called at once
                lambda got: decode(KeyEnvelope, body).secret == got.secret.reveal(),  # noqa: B023
                ("malformed", "unknown-shard", "not-maker", "other-committee"),
            )

    check()


def test_padding_comes_off_as_it_was_put_on_or_not_at_all(tally: Tally) -> None:
    @fuzzed(5)
    @given(st.binary(max_size=700), st.integers(5, 16), seeds)
    def check(body: bytes, slots: int, seed: int) -> None:
        padded, random = steps._pad(body, slots), chance(seed)
        assert len(padded) == 512 + 128 * slots
        tally.tries(lambda: steps._unpad(padded), lambda got: got == body, ())
        for changed in (body, b"", bytes(40), *(bent_bytes(random, padded, body) for _ in range(5))):
            tally.tries(
                lambda: steps._unpad(changed),  # noqa: B023  called at once
                lambda got: (got + b"\x80").ljust(len(changed), b"\x00") == changed,  # noqa: B023
                MALFORMED,
            )

    check()
    assert tally.refused > 0


# --- enrolments ----------------------------------------------------------------------------------------------------

ENROLMENT = enrol(WORLD.party(1).keys, "insurer-01", "group", "http://127.0.0.1:1")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def means_the_same(data: dict[str, Any], member: Any, check: bytes) -> bool:  # noqa: ANN401
    texts = [str(data[field]) for field in ("id", "group", "url")] == [member.id, member.group, member.url]
    keys = [bytes.fromhex(data[field]) for field in ("signing_key", "sealing_key", "salt_check")]
    return texts and keys == [member.signing_key, member.sealing_key, check]


def test_an_enrolment_is_what_its_own_key_signed_or_is_refused_whatever_json_it_is(tally: Tally) -> None:
    keys = WORLD.party(1).keys
    assert read_enrolment(ENROLMENT)[1] == salt_check(keys.salt)

    @fuzzed(8)
    @given(json_values, st.sampled_from(sorted(ENROLMENT)), seeds)
    def check(value: Any, field: str, seed: int) -> None:  # noqa: ANN401
        random = chance(seed)
        text = bent_bytes(random, ENROLMENT[field].encode()).decode(errors="surrogateescape")
        without = {key: item for key, item in ENROLMENT.items() if key != field}
        for data in (value, without, ENROLMENT | {field: value}, ENROLMENT | {field: text}, ENROLMENT):
            tally.tries(
                lambda: read_enrolment(data),  # noqa: B023  called at once
                lambda got: means_the_same(data, *got) and got[0].id == "insurer-01",  # noqa: B023
                ("bad-enrolment",),
            )

    check()
    assert tally.accepted > 0


def test_an_enrolment_nested_as_deep_as_json_may_be_is_refused(tally: Tally) -> None:
    for depth in (10, 900, 100_000):
        nested: Any = "insurer-01"
        for _ in range(depth):
            nested = [nested]
        tally.tries(lambda: read_enrolment(ENROLMENT | {"id": nested}), lambda _: False, ("bad-enrolment",))  # noqa: B023


def test_a_file_that_is_no_enrolment_is_refused_by_the_admins_command_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tally: Tally
) -> None:
    enrolment, service, manifest = (tmp_path / file for file in ("enrolment", "service", "manifest"))
    service.write_text("{}")
    arguments = ["manifest-create", str(manifest), str(enrolment), "--alliance", "x", "--service", str(service)]
    arguments += ["--plain-http"]
    for data in (b"", b"{", b"\xff", b"[]", b"[1]", b"null", b"1", b'"x"', b"{}", b"[" * 100_000, b"\x00" * 9):
        enrolment.write_bytes(data)
        tally.inputs += 1
        try:
            status = main([*arguments, "--expected-persons", "100000"])
        except Exception:
            tally.crashed += 1
            raise
        assert (status, capsys.readouterr().err.count("\n"), manifest.exists()) == (2, 1, False)
        tally.refused += 1


# --- the group, identities, proofs ---------------------------------------------------------------------------------


def test_bytes_are_an_element_that_the_group_computes_with_or_are_refused(tally: Tally) -> None:
    one, inverse = group.scalar_from_int(1), group.scalar_invert(group.scalar_from_int(7))

    @fuzzed(8)
    @given(st.binary(max_size=40), st.sampled_from(POINTS), seeds)
    def check(data: bytes, point: Element, seed: int) -> None:
        tally.tries(lambda: group.element(point), lambda got: got == point, ())
        random = chance(seed)
        for candidate in (data, random.randbytes(32), *(bent_bytes(random, point, data) for _ in range(8))):
            # An element has one encoding: what is computed from it and back is the same bytes.
            tally.tries(
                lambda: group.element(candidate),  # noqa: B023  called at once
                lambda got: (
                    got == group.multiply(one, got)
                    and got == group.multiply(inverse, group.multiply(group.scalar_from_int(7), got))
                    and any(got)
                ),
                ("bad-element",),
            )

    check()
    assert tally.refused > 0


def test_bytes_are_a_scalar_below_the_order_and_not_zero_or_are_refused(tally: Tally) -> None:
    edges = [number.to_bytes(32, "little") for number in (0, 1, group.ORDER - 1, group.ORDER, 2**255, 2**256 - 1)]

    @fuzzed(8)
    @given(st.binary(max_size=40), scalars, seeds)
    def check(data: bytes, scalar: bytes, seed: int) -> None:
        random = chance(seed)
        for candidate in (*edges, data, scalar, *(bent_bytes(random, scalar, data) for _ in range(4))):
            tally.tries(
                lambda: group.scalar(candidate),  # noqa: B023  called at once
                lambda got: len(got) == 32 and 0 < int.from_bytes(got, "little") < group.ORDER,
                ("bad-scalar",),
            )

    check()
    assert tally.refused > 0


def test_a_text_is_a_document_number_of_one_person_and_shard_or_is_refused(tally: Tally) -> None:
    letters = st.text(st.characters(), max_size=70)

    @fuzzed(8)
    @given(st.sampled_from(DocumentType), letters, letters, st.binary(max_size=40), st.integers(1, 4096))
    def check(kind: DocumentType, number: str, other: str, salt: bytes, shards: int) -> None:
        def made(text: str) -> Identity:
            identity = Identity(kind, text)
            assert 0 <= shard_of(Secret(salt), identity, shards) < shards
            return identity

        results = [
            tally.tries(
                lambda: made(text),  # noqa: B023  called at once
                lambda got: 0 < len(got.number.encode()) <= MAX_NUMBER_BYTES and got.encode().endswith(text.encode()),  # noqa: B023
                ("identity-length",),
            )
            for text in (number, other, "x" * 64, "x" * 65, "")
        ]
        good = {one.encode(): one for one in results if isinstance(one, Identity)}
        assert len(good) == len({one for one in results if isinstance(one, Identity)})

    check()
    assert tally.refused > 0


def test_no_proof_but_the_makers_own_holds_and_none_does_harm(tally: Tally) -> None:
    """Elements and scalars as decoders let them through: any canonical ones, zero among the scalars."""
    key, public = WORLD.service.keys.blinding, WORLD.manifest.blinding_key
    any_scalar = scalars | st.just(bytes(32))

    @fuzzed(2)
    @given(st.lists(st.sampled_from(POINTS), min_size=1, max_size=4), any_scalar, any_scalar, scalars, scalars, seeds)
    def check(blinded: list[Element], c: bytes, r: bytes, t: group.Scalar, nonce: group.Scalar, seed: int) -> None:
        random = chance(seed)
        context = check_context("insurer-01", random.randbytes(16), 0)
        token = blind(WORLD.party(1).keys.salt, person(1), public, context, (t, nonce))
        point, other = random.choice(POINTS), random.choice(POINTS)
        hostile = SchnorrProof(challenge=c, response=r)
        for candidate, honest in (
            (token, True),
            (replace(token, proof=hostile), False),
            (replace(token, proof=replace(token.proof, challenge=c)), False),
            (replace(token, proof=replace(token.proof, response=r)), False),
            (replace(token, unblinder=other), False),
            (Token(token.blinded, public, hostile), False),
            (Token(point, other, token.proof), False),
            (replace(token, blinded=other), False),
        ):
            holds = tally.tries(lambda: verify_unblinder(candidate, public, context), lambda got: got is honest)  # noqa: B023
            assert isinstance(holds, bool)

        evaluated = [voprf.blind_evaluate(key, one) for one in blinded]
        proof = voprf.prove(key, public, blinded, evaluated, nonce)
        swapped = [point, *evaluated[1:]]
        for points, results, shown, honest in (
            (blinded, evaluated, proof, True),
            (blinded, evaluated, DleqProof(challenge=c, response=r), False),
            (blinded, evaluated, replace(proof, challenge=c), False),
            (blinded, swapped, proof, False),
            (blinded, evaluated[1:], proof, False),
            ([], [], proof, False),
            (blinded, blinded, proof, False),
            ([*blinded, point], [*evaluated, point], proof, False),
        ):
            tally.tries(lambda: voprf.verify(public, points, results, shown), lambda got: got is honest)  # noqa: B023

    check()


# --- parts of a comparison -----------------------------------------------------------------------------------------


def verdicts(parts: dict[int, Part]) -> list[Verdict] | ProtocolError:
    """Evaluate as the service does; a disagreement is a refusal here, and names slots of A alone."""
    try:
        return HONEST.evaluate(parts)
    except Disagreement as disagreement:
        named = set(disagreement.slots)
        assert named
        assert named <= set(HONEST.chosen.slots)
        raise ProtocolError("disagreement", disagreement.what) from None


def never(wrong: Verdict) -> Any:  # noqa: ANN401
    return lambda got: wrong not in got


def test_a_part_of_any_shape_opens_the_right_verdict_or_none(tally: Tally) -> None:
    cases = [(HONEST.parts(lanes), wrong) for lanes, wrong in ((OVER, Verdict.WITHIN), (UNDER, Verdict.EXCEEDS))]
    for parts, wrong in cases:
        tally.tries(lambda: verdicts(parts), never(wrong), ())  # noqa: B023  called at once

    @fuzzed(4)
    @given(st.data(), st.sampled_from(cases), st.sampled_from(HONEST.chosen.slots), st.booleans())
    def check(data: st.DataObject, case: tuple[dict[int, Part], Verdict], slot: int, digested: bool) -> None:  # noqa: FBT001
        parts, wrong = case
        part = data.draw(messages(Part) | bent(parts[slot]))
        if digested and part.garbled is not None:
            part = replace(part, garbled_digest=part.garbled.digest())  # as a liar would
        tally.tries(lambda: verdicts({**parts, slot: part}), never(wrong), ("disagreement",))

    check()
    assert tally.refused > 0


# --- answers of peers ----------------------------------------------------------------------------------------------

PROBLEM = "application/problem+json"
problems = st.one_of(
    st.binary(max_size=60),
    json_values.map(lambda value: json.dumps(value).encode()),
    json_values.map(lambda value: json.dumps({"code": value}).encode()),
    st.text(st.characters(codec="utf-8"), max_size=80).map(lambda text: json.dumps({"code": text}).encode()),
)


def test_a_peers_answer_is_its_message_or_a_refusal_whatever_it_says(tally: Tally) -> None:
    public = WORLD.manifest.terms.service_signing_key
    call = Call("http://127.0.0.1:1", "/v1/checks", b"request", {})

    @fuzzed(8)
    @given(
        messages(CheckOutcome),
        problems,
        st.integers(100, 999),
        st.sampled_from([PROBLEM, "text/html"]),
        st.text(st.characters(codec="latin-1"), max_size=130),
    )
    def check(outcome: CheckOutcome, body: bytes, status: int, content_type: str, signature: str) -> None:
        for reply in (Reply(200, encode(outcome), ""), Reply(200, body, ""), Reply(status, body, content_type)):
            tally.tries(
                lambda: message_of(CheckOutcome, reply),  # noqa: B023  called at once
                lambda got: encode(got) == reply.body,  # noqa: B023
                AnyCode(),
            )
            signed = replace(reply, signature=signature)
            tally.tries(lambda: service_message_of(CheckOutcome, call, signed, public), lambda _: False, AnyCode())  # noqa: B023

    check()
    assert tally.accepted > 0


class AnyCode(tuple[str, ...]):
    """A code that a peer made up is passed on, if it has the form of one."""

    __slots__ = ()

    def __contains__(self, code: object) -> bool:
        return isinstance(code, str) and 0 < len(code) <= 64


@pytest.mark.parametrize("nested", [b"[" * 100_000, b'{"code":' * 100_000, b'{"code":[' * 50_000])
def test_a_problem_nested_as_deep_as_an_answer_may_be_is_a_refusal(nested: bytes, tally: Tally) -> None:
    tally.tries(lambda: message_of(CheckAnswer, Reply(422, nested, PROBLEM)), lambda _: False, ("refused",))


def test_the_code_of_a_refusal_has_the_form_of_a_code(tally: Tally) -> None:
    for text in ("寿", "é", "١", "a b", "a\nb", "-", "", "x" * 65, "budget-exhausted\n"):
        reply = Reply(422, json.dumps({"code": text}).encode(), PROBLEM)
        tally.tries(lambda: message_of(CheckAnswer, reply), lambda _: False, ("refused",))  # noqa: B023  called at once


NO_ADDRESSES = ["http://127.0.0.1:99999", "http://[::1", "http://a b:1", "http://\u2100:1", "http://127.0.0.1:1\x00"]
NO_ADDRESSES += [f"http://{'a' * 70}.invalid:1", "http://", "http://:x", "//", "x", "file:///etc/passwd"]


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_an_address_that_is_none_is_in_no_manifest_and_is_unreachable(address: str, tally: Tally) -> None:
    """A member names its own address in its enrolment, and all others call it."""
    members = (replace(TERMS.members[0], url=address), *TERMS.members[1:])
    for terms in (replace(TERMS, members=members), replace(TERMS, service_url=address)):
        bad = signed_manifest(terms)
        tally.tries(lambda: open_manifest(bad, PINS, NOW), lambda _: False, ("bad-manifest",))  # noqa: B023  called at once
    peers = Peers()
    calls = [Call("http://127.0.0.1:1", "/x", b"", {}), Call(address, "/x", b"", {})]
    tally.tries(lambda: peers.exchange(calls, 1.0), lambda got: got == [Unreachable(timed_out=False)] * 2, ())
    peers.close()


def test_the_tally_counts_a_crash_and_what_was_wrongly_accepted(tally: Tally) -> None:
    """The measure itself: each kind of failure is one."""
    spoilt = Tally()
    with pytest.raises(ZeroDivisionError):
        spoilt.tries(lambda: 1 // 0, lambda _: True)
    with pytest.raises(AssertionError):
        spoilt.tries(lambda: 1, lambda _: False)
    with pytest.raises(AssertionError):
        spoilt.tries(lambda: decode(Part, b""), lambda _: True, ("another-code",))
    assert (spoilt.inputs, spoilt.crashed, spoilt.wrong, spoilt.refused, spoilt.accepted) == (3, 2, 1, 0, 0)
    tally.tries(lambda: decode(Part, b""), lambda _: False, MALFORMED)
