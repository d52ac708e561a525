"""A malicious custodian, live: whatever it does, verdicts of honest members are right or indeterminate, never wrong."""

import secrets
import socket
import time
from collections.abc import Iterator
from http import HTTPStatus
from itertools import cycle, islice
from urllib.request import Request

import pytest
from live import call, wait_for_ticks
from malicious_custodian import (
    ABOVE,
    AT_LIMIT,
    DEAD,
    EXCEEDS,
    LIAR,
    LIMIT,
    MEMBERS,
    SHARDS,
    TRUTHS,
    WITHIN,
    Asked,
    Attempted,
    Change,
    Lie,
    Stage,
    assert_passed_over,
    lied_to,
    places,
    problem,
    saying,
    staged,
)
from malicious_custodian_says import (
    ALL,
    GARBLING,
    LINE,
    SHARES,
    bent,
    named_otherwise,
    turned_k,
    turned_outputs,
    without_stamps,
)
from malicious_holder import HOLDING, Holder, Policy
from werkzeug.wrappers import Response

from insurer_agent.agent import Agent
from protocol import committee_keys, signing
from protocol.check import Void
from protocol.committee_keys import CommitteeKey, KeyEnvelope
from protocol.encoding import encode
from protocol.errors import ProtocolError
from protocol.messages import RELAY_PURPOSE, CheckAnswer, CheckOutcome, KeyConfirmation, Relay, SignedRelay
from protocol.secret import Secret
from transport.internal import CHECK, CHECKS, COMMIT, COMMITTEE_KEY, CONTENT_TYPE, PREPARE, message_of, signed_headers

pytestmark = pytest.mark.alliance


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with staged(tmp_path_factory.mktemp("custodian")) as stage:
        yield stage


@pytest.fixture(autouse=True)
def honest_again(stage: Stage) -> Iterator[None]:
    yield
    custodian = stage.custodian
    custodian.lie = custodian.line = custodian.prepare_attack = custodian.commit_attack = custodian.key_attack = None
    custodian.faults.clear()


# --- what it says of shares, rule and deposits ---------------------------------------------------------------------


@pytest.mark.parametrize("what", SHARES)
def test_a_custodian_that_sums_something_else_is_named_and_another_a_gives_the_right_verdict(
    stage: Stage, what: str
) -> None:
    for attempt in lied_to(stage, *SHARES[what]):
        assert attempt.outcome is Void.DISAGREEMENT
        assert {said for _, said in attempt.noted} == {"disagrees about: shares or stamps"}
        # A lie in one group alone may be that of either side of it.
        assert stage.name in {member for member, _ in attempt.noted}
        assert len(attempt.noted) <= 2


@pytest.mark.parametrize("what", GARBLING)
def test_a_custodian_that_garbles_something_else_is_named_and_another_a_gives_the_right_verdict(
    stage: Stage, what: str
) -> None:
    lie, positions, reason = GARBLING[what]
    for attempt in lied_to(stage, lie, positions):
        assert attempt.outcome is Void.DISAGREEMENT
        assert {said for _, said in attempt.noted} == {f"disagrees about: {reason}"}
        assert stage.name in {member for member, _ in attempt.noted}
        # Only where a sender and its voucher contradict each other may it be either.
        assert len(attempt.noted) == 1 or reason == "shares or stamps"


def test_all_four_positions_of_a_were_lied_from(stage: Stage) -> None:
    assert stage.custodian.positions == set(ALL)


# --- how it answers ------------------------------------------------------------------------------------------------


STATUSES = (*range(201, 207), 226, 300, 304, *range(400, 411), 418, 422, 429, *range(500, 506), 599)


@pytest.mark.parametrize("what", LINE)
def test_a_custodian_that_answers_with_something_else_is_passed_over_and_the_verdict_is_right(
    stage: Stage, what: str
) -> None:
    change, code = LINE[what]
    assert_passed_over(stage, change, code)


@pytest.mark.parametrize("status", STATUSES)
def test_an_answer_under_another_status_is_none_though_it_be_right(stage: Stage, status: int) -> None:
    def change(response: Response) -> Response:
        return Response(response.get_data(), status=status, content_type=CONTENT_TYPE)

    # These two have no body and state no length, which 304 alone may do: it is the service's word for a manifest.
    code = "unreachable" if status == HTTPStatus.NO_CONTENT else "refused"
    assert_passed_over(stage, change, code, sides=TRUTHS[status % 2 :][:1])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(stage: Stage, status: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        place = f"http://127.0.0.1:{elsewhere.getsockname()[1]}/"
        assert_passed_over(stage, lambda _: Response(status=status, headers={"Location": place}), "refused")
        elsewhere.setblocking(False)  # noqa: FBT003  as in the standard library
        with pytest.raises(BlockingIOError):
            elsewhere.accept()


# --- no other A to be had ------------------------------------------------------------------------------------------


def test_where_no_other_a_is_left_a_malicious_custodian_voids_checks_and_turns_none(stage: Stage) -> None:
    cases: list[tuple[Lie | None, Change | None, str]] = [
        (lambda asked: asked.adding(1, asked.mine), None, "disagreement"),
        (lambda asked: asked.adding(-LIMIT, asked.mine), None, "disagreement"),
        (named_otherwise, None, "disagreement"),
        (lambda asked: turned_k(asked) if asked.position else turned_outputs(asked), None, "disagreement"),
        (without_stamps, None, "disagreement"),
        (None, problem(b'{"code": "no"}', 422), "disagreement"),
        # A denial under a name that the requester is told: it cannot tell it from a budget that is spent.
        (lambda asked: asked.spent(0), None, "budget-exhausted"),
        (lambda asked: asked.spent(1), None, "disagreement"),
        (None, problem(b'{"code": "budget-exhausted"}', 429), "disagreement"),
        (None, problem(b'{"code": "timeout"}', 504), "too-few-custodians"),
        (None, saying(lambda _: [], reset=True), "too-few-custodians"),
        (None, bent(lambda body: body[:-1]), "too-few-custodians"),
    ]
    busy = ("timeout", "too-few-custodians")  # so reads a check for which one of the four was late
    stage.alliance.kill(DEAD)
    try:
        for lie, change, reason in cases:
            for position, (amount, truth) in enumerate(TRUTHS):
                asker, person = next(pair for pair in places(stage, position) if pair[0] != DEAD)
                assert stage.ask(asker, person, amount, but=busy) == truth
                assert stage.name in stage.service.attempts[-1].chosen
                stage.custodian.lie, stage.custodian.line = lie, change
                but = [one for one in busy if one != reason]
                assert stage.ask(asker, person, amount, but=but) == ("indeterminate", reason)
                stage.custodian.lie = stage.custodian.line = None
    finally:
        stage.alliance.restart(DEAD)
    assert stage.custodian.faults == []


# --- past the service ----------------------------------------------------------------------------------------------


def test_a_custodian_cannot_call_other_members_or_give_them_its_answer(stage: Stage) -> None:
    kept: list[tuple[bytes, bytes]] = []

    def keep(asked: Asked) -> CheckAnswer:
        kept.append((encode(asked.call), encode(asked.honest())))
        return asked.honest()

    stage.custodian.lie = keep
    for asker, person in places(stage, 0):
        assert stage.ask(asker, person, AT_LIMIT) == WITHIN
        if kept:
            break
    asked, answer = kept[-1]
    own = stage.custodian._party.keys.signing
    theirs = stage.service._service.keys.signing
    for number in set(range(1, MEMBERS + 1)) - {LIAR}:
        url, member = stage.alliance.member(number)["url"], f"insurer-{number:02d}"
        for path in (CHECK, CHECKS, PREPARE, COMMIT, COMMITTEE_KEY):
            for body in (asked, answer):
                headers = signed_headers(own, member, path, body, time.time())
                refused = call(Request(url + path, body, headers, method="POST"))
                assert (refused.status, refused.body["code"]) == (401, "bad-signature")
        # An agent has no place where an answer could be left: whoever asks under its address needs its API key.
        refused = call(Request(url + "/v1/checks", answer, {"Content-Type": CONTENT_TYPE}, method="POST"))
        assert (refused.status, refused.body["code"]) == (401, "unauthorized")
        # Signed by the service, the same call gets past the signature.
        headers = signed_headers(theirs, member, CHECK, asked, time.time())
        refused = call(Request(url + CHECK, asked, headers, method="POST"))
        assert refused.body["code"] in {"replayed", "bad-choice", "bad-envelopes", "not-custodian"}


# --- what it says of deposits --------------------------------------------------------------------------------------


def test_deposits_about_which_a_holder_lies_count_once_or_not_at_all_and_are_whole_when_it_is_honest_again(
    stage: Stage,
) -> None:
    holder, policies = Holder(stage.custodian), {}
    for place, (what, (prepare, commit, expected)) in enumerate(HOLDING.items()):
        shard = (2, 7)[place % 2]
        person = next(stage.persons_of(shard, 1_000_000 * (place + 1)))
        policies[what] = Policy(stage, shard, person, next(islice(cycle(stage.askers(shard)), place, None)))
        stage.custodian.prepare_attack, stage.custodian.commit_attack = prepare(holder), commit(holder)
        assert policies[what].state() == expected, what
    stage.custodian.prepare_attack = stage.custodian.commit_attack = None
    wait_for_ticks()
    for what, policy in policies.items():
        counts = HOLDING[what][2][1] != "unmade"
        assert_counted(stage, policy, counts=counts)
    # It is honest again, and the depositors repeat the same bytes.
    for what, policy in policies.items():
        assert policy.state() == (None, "complete"), what
    wait_for_ticks()
    agreed = 0
    for policy in policies.values():
        for attempt in assert_counted(stage, policy, counts=True):
            assert isinstance(attempt.outcome, CheckOutcome) == attempt.compared()
            agreed += attempt.compared() and stage.name in attempt.chosen
    assert agreed > 0


def assert_counted(stage: Stage, policy: Policy, *, counts: bool) -> list[Attempted]:
    seen = []
    for asker in islice(stage.askers(policy.shard), 2):
        assert stage.ask(asker, policy.person, AT_LIMIT) == WITHIN
        seen += stage.service.attempts
        assert stage.ask(asker, policy.person, ABOVE) == (EXCEEDS if counts else WITHIN)
        seen += stage.service.attempts
    return seen


# --- committee keys ------------------------------------------------------------------------------------------------


def key_of(stage: Stage, shard: int, omitted: int | None) -> CommitteeKey:
    return stage.custodian._key(stage.custodian._party, shard, omitted)


def another(stage: Stage, shard: int, omitted: int | None) -> CommitteeKey:
    name = key_of(stage, shard, omitted).name
    return CommitteeKey.named(shard, omitted, name.committee_version, int(time.time()), Secret(secrets.token_bytes(32)))


def test_a_maker_cannot_replace_a_committee_key_that_a_holder_has(stage: Stage) -> None:
    shard = 0  # where it holds the first slot
    for omitted in (None, 1, 5):
        for holder in committee_keys.holders(stage.insiders[1].manifest, shard, omitted)[1:]:
            before = stored_key(stage, holder, shard, omitted)
            assert not stage.custodian._hand_out(another(stage, shard, omitted), holder)
            assert stored_key(stage, holder, shard, omitted) == before
            # The key that stands is confirmed again.
            assert stage.custodian._hand_out(key_of(stage, shard, omitted), holder)
    asker = stage.askers(shard)[0]
    for amount, truth in TRUTHS:
        assert stage.ask(asker, next(stage.people[shard]), amount) == truth


def stored_key(stage: Stage, holder: str, shard: int, omitted: int | None) -> object:
    with stage.alliance.database(int(holder[-2:])) as connection:
        return connection.execute(
            "SELECT made_at, sealed FROM committee_key WHERE shard = %s AND omitted = %s",
            (shard, -1 if omitted is None else omitted),
        ).fetchall()


def test_a_committee_key_from_a_custodian_that_is_not_its_maker_is_refused(stage: Stage) -> None:
    liar, shard = stage.insiders[LIAR], 4  # where it holds the last slot
    key = another(stage, shard, None)
    for holder in committee_keys.holders(liar.manifest, shard, None)[:-1]:
        before = stored_key(stage, holder, shard, None)
        body = KeyEnvelope(
            shard=shard,
            omitted=None,
            committee_version=key.name.committee_version,
            made_at=key.name.made_at,
            secret=key.secret.reveal(),
            manifest_hash=liar.manifest.hash,
        )
        envelope = liar.party.channel(holder).seal(
            committee_keys.PURPOSE, liar.manifest.hash, encode(body), secrets.token_bytes(32)
        )
        relay = Relay(sender=liar.party.id, recipient=holder, issued_at=int(time.time()), envelope=envelope)
        signature = signing.sign(liar.party.keys.signing, RELAY_PURPOSE, encode(relay))
        reply = liar.post("/v1/relay", encode(SignedRelay(relay=relay, signature=signature)))
        with pytest.raises(ProtocolError) as refused:
            message_of(KeyConfirmation, reply)
        assert refused.value.code == "not-maker"
        assert stored_key(stage, holder, shard, None) == before


def test_a_holder_that_confirms_another_check_value_stays_unconfirmed(stage: Stage) -> None:
    shard, omitted = 4, None
    maker = Agent.open(stage.alliance.member_state(stage.keepers(shard)[0]))
    try:
        key = maker.custodian._key(maker.custodian._party, shard, omitted)
        stage.custodian.key_attack = lambda _: KeyConfirmation(check_value=bytes(32))
        assert not maker.custodian._hand_out(key, stage.name)
        stage.custodian.key_attack = None
        assert maker.custodian._hand_out(key, stage.name)
    finally:
        maker.custodian._peers.close()
        maker.database.close()


def test_a_maker_that_hands_out_unequal_committee_keys_voids_checks_and_turns_none(stage: Stage) -> None:
    # The set of shard 6 without its first slot, whose maker it is: only checks and deposits of that slot's member use
    # the key. The holder is made to forget it, as if it had never had one.
    shard, omitted = 6, 0
    asker, *_ = stage.keepers(shard)
    deceived = committee_keys.holders(stage.insiders[1].manifest, shard, omitted)[1]
    person = next(stage.persons_of(shard, 90_000_000))
    with stage.alliance.database(int(deceived[-2:])) as connection:
        gone = "DELETE FROM committee_key WHERE shard = %s AND omitted = %s"
        assert connection.execute(gone, (shard, omitted)).rowcount == 1
    assert stage.custodian._hand_out(another(stage, shard, omitted), deceived)
    stage.alliance.kill(int(deceived[-2:]))
    stage.alliance.restart(int(deceived[-2:]))
    seen = []
    for _ in range(12):
        for amount, truth in (("50000000.00", WITHIN), ("50000000.01", EXCEEDS)):
            assert stage.ask(asker, person, amount) == truth
            seen += stage.service.attempts
    compared = [attempt for attempt in seen if attempt.compared()]
    with_it = [attempt for attempt in compared if deceived in attempt.chosen]
    assert with_it
    for attempt in with_it:
        assert attempt.outcome is Void.DISAGREEMENT
        # It is the deceived one that stands out.
        assert attempt.noted == ((deceived, "disagrees about: committee key"),)
    assert all(isinstance(attempt.outcome, CheckOutcome) for attempt in compared if deceived not in attempt.chosen)


# --- and after ------------------------------------------------------------------------------------------------------


def test_all_is_right_when_the_real_agent_and_the_real_service_are_back(stage: Stage) -> None:
    # It runs last: what it ends is not brought back.
    stage.bring_the_real_ones_back()
    for shard in range(SHARDS):
        person = next(stage.people[shard])
        for asker in stage.askers(shard)[1:3]:
            for amount, truth in TRUTHS:
                assert stage.ask(asker, person, amount) == truth
