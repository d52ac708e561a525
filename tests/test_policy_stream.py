"""What is in a stream gets into the register, once and in its order; what cannot is kept as a dead letter."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from consuming import GROUP, QUICK, STREAM, House, policy, wait_until
from embedded_redis import EmbeddedRedis
from hypothesis import given
from hypothesis import strategies as st
from strategies import deterministic


@pytest.fixture
def house(redis_server: EmbeddedRedis, database: str) -> Iterator[House]:
    with redis_server.client() as client:
        client.flushall()
    opened = House.open(redis_server, database)
    yield opened
    opened.database.close()


def drain(house: House) -> None:
    with house.consuming():
        wait_until(house.settled)


def test_events_are_applied_in_order_and_a_repeat_counts_once(house: House) -> None:
    house.send(
        policy("A-1", amount="¥500万"),
        policy("A-2"),
        policy("A-1", "amend", "2000.00"),
        policy("A-2"),
        policy("A-2", "cancel", None),
        policy("A-1", "amend", "3000.00"),
    )
    drain(house)
    assert house.in_force() == {"A-1": 300_000, "A-2": 0}
    assert (house.deposits(), house.dead_letters()) == (5, [])


def test_a_group_that_was_lost_begins_again_and_all_is_repeats(house: House) -> None:
    house.send(policy(), policy(event="amend", amount="5"), policy(event="amend", amount="7"))
    drain(house)
    with house.redis.client() as client:
        client.xgroup_destroy(STREAM, GROUP)
    with house.consuming() as consumer:
        wait_until(house.settled)
    assert consumer._tally.counts == {"repeated": 3}
    assert (house.in_force(), house.deposits()) == ({"A-1": 700}, 3)


def test_a_group_that_is_lost_meanwhile_is_made_anew(house: House) -> None:
    with house.consuming():
        house.send(policy("A-1"))
        wait_until(house.settled)
        with house.redis.client() as client:
            client.flushall()
        house.send(policy("A-2"))
        wait_until(lambda: len(house.in_force()) == 2)


# --- corrections that come early -----------------------------------------------------------------------------------


def test_corrections_wait_for_their_issue_and_keep_their_order(house: House) -> None:
    patient = type(QUICK)(claim=0.5, patience=30)
    with house.consuming(pace=patient):
        house.send(policy("A-1", "amend", "5"), policy("A-2", "cancel", None), policy("A-1", "amend", "7"))
        wait_until(lambda: house.pending() == 3)
        house.send(policy("A-3"))
        wait_until(lambda: house.in_force() == {"A-3": 100_000})  # others go on meanwhile
        house.send(policy("A-1"), policy("A-2"), policy("A-1", "amend", "9"))
        wait_until(house.settled)
    assert house.in_force() == {"A-1": 900, "A-2": 0, "A-3": 100_000}
    assert house.dead_letters() == []


def test_a_correction_whose_issue_does_not_come_is_a_dead_letter_in_the_end(house: House) -> None:
    house.send(policy("A-1", "cancel", None), policy("A-2", "amend", "5"), policy("A-3"))
    drain(house)
    assert house.codes() == ["policy-unknown", "policy-unknown"]
    assert house.in_force() == {"A-3": 100_000}


def test_what_waits_is_taken_up_by_the_next_consumer(house: House) -> None:
    patient = type(QUICK)(patience=30, claim=0.1)
    house.send(policy(event="cancel", amount=None))
    with house.consuming("first", pace=patient):
        wait_until(lambda: house.pending() == 1)
    house.send(policy())
    with house.consuming("second", pace=patient):
        wait_until(house.settled)
    assert (house.in_force(), house.dead_letters()) == ({"A-1": 0}, [])


# --- several consumers ---------------------------------------------------------------------------------------------


def test_what_another_left_pending_is_taken_first_and_in_order(house: House) -> None:
    house.send(policy(), policy(event="amend", amount="5"), policy(event="amend", amount="7"))
    gone = house.stream("gone")
    gone.open_group()
    assert len(gone.new(2, 1)) == 2
    drain(house)
    assert house.in_force() == {"A-1": 700}


def test_of_two_consumers_one_stands_by_and_takes_over(house: House) -> None:
    amounts = [str(amount) for amount in range(1, 400)]
    with house.consuming("second"):
        with house.consuming("first"):
            house.send(policy(), *(policy(event="amend", amount=amount) for amount in amounts[:200]))
            wait_until(lambda: house.in_force().get("A-1", 0) > 0)
        house.send(*(policy(event="amend", amount=amount) for amount in amounts[200:]))
        wait_until(house.settled)
    assert house.in_force() == {"A-1": 39_900}
    assert (house.deposits(), house.dead_letters()) == (400, [])


def test_nothing_is_applied_while_another_has_something_pending(house: House) -> None:
    house.send(policy(), policy(event="amend", amount="5"), policy(event="amend", amount="7"))
    stranger = house.stream("stranger")
    consumer = house.consumer(threading.Event(), pace=type(QUICK)(batch=1))

    def held() -> bool:  # is asked after the reading
        stranger.new(1, 0.001)
        return True

    consumer._lead(held)
    assert (house.in_force(), house.pending()) == ({}, 2)
    drain(house)
    assert (house.in_force(), house.deposits()) == ({"A-1": 700}, 3)


def test_nothing_is_applied_once_the_lock_is_lost(house: House) -> None:
    house.send(policy())
    house.consumer(threading.Event())._lead(lambda: False)
    assert (house.in_force(), house.pending()) == ({}, 1)
    house.consumer(threading.Event())._lead(lambda: False)  # of what is pending neither
    assert (house.in_force(), house.pending()) == ({}, 1)
    drain(house)
    assert house.in_force() == {"A-1": 100_000}


def test_a_lost_lock_is_noticed(house: House) -> None:
    with house.consuming():
        house.send(policy("A-1"))
        wait_until(house.settled)
        ended = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
        house.database.run("end the lock's connection", lambda at: at.execute(ended).fetchall())
        house.send(policy("A-2"))
        wait_until(lambda: len(house.in_force()) == 2)


# --- dead letters --------------------------------------------------------------------------------------------------

POISON: list[tuple[Any, str]] = [
    (b"\xff\xfe", "not-json"),
    (b"", "not-json"),
    (b"[" * 60_000, "not-json"),
    (b'{"event": "issue", "event": "cancel"}', "not-json"),
    (b"1e999", "not-an-object"),
    (b" " * 70_000, "entry-too-long"),
    (policy(more="x"), "name-unknown"),
    ({key: value for key, value in policy().items() if key != "product"}, "name-missing"),
    (policy(amount=None), "amount-empty"),
    (policy(insured_amount=1000), "value-not-text"),
    (policy(insured_amount=1000.5), "value-not-text"),
    (policy(insured_amount=None), "value-not-text"),
    (policy(document_number=["E1"]), "value-not-text"),
    (policy(amount="1.000"), "amount-not-whole-fen"),
    (policy(amount="99999999999999"), "amount-too-large"),
    (policy(product="x" * 5000), "cell-too-long"),
    (policy(product="none"), "product-unknown"),
    (policy(event="issue it"), "event-unknown"),
    (policy(issued_on="3/11/2026"), "date-ambiguous"),
    (policy("A\x00"), "policy-number-malformed"),
    (policy("\ud800"), "policy-number-malformed"),
    (policy(document_number="\ud800"), "document-number-malformed"),
]


@pytest.mark.parametrize(("poison", "code"), POISON)
def test_poison_is_kept_whole_with_its_code_and_stops_nothing(house: House, poison: Any, code: str) -> None:  # noqa: ANN401
    (ident,) = house.send(poison)
    house.send(policy())
    drain(house)
    assert house.codes() == [code]
    (letter,) = house.dead_letters()
    with house.redis.client() as client:
        ((_, original),) = client.xrange(STREAM, ident, ident)
    reason = letter.pop(b"rejected_reason")
    assert reason
    assert letter == original | {b"rejected_id": ident, b"rejected_code": code.encode()}
    assert house.in_force() == {"A-1": 100_000}


def test_an_entry_of_other_fields_is_kept_with_all_of_them(house: House) -> None:
    with house.redis.client() as client:
        client.execute_command("XADD", STREAM, "*", "policy", "a", "policy", "b", "code", "c")
        client.execute_command("XADD", STREAM, "*", "Policy", "a")
        drain(house)
        assert house.codes() == ["entry-fields"] * 2
        client.set_response_callback("XRANGE", lambda reply, **_: reply)
        (_, fields), _ = client.execute_command("XRANGE", f"{STREAM}:rejected", "-", "+")
        assert fields[-6:] == [b"policy", b"a", b"policy", b"b", b"code", b"c"]


@pytest.mark.parametrize("name", ["here", "gone"])
def test_an_entry_that_was_deleted_before_it_was_taken_is_told(house: House, name: str) -> None:
    ids = house.send(policy("A-1"), policy("A-2"))
    house.stream().open_group()
    house.stream(name).new(2, 1)
    with house.redis.client() as client:
        client.xdel(STREAM, ids[0])
    drain(house)
    assert [letter[b"rejected_id"] for letter in house.dead_letters()] == [ids[0]]
    assert house.codes() == ["entry-gone"]
    assert house.in_force() == {"A-2": 100_000}


def test_without_a_place_for_dead_letters_nothing_is_acknowledged(house: House) -> None:
    with house.redis.client() as client:
        client.set(f"{STREAM}:rejected", "in the way")
        with house.consuming() as consumer:
            house.send(b"poison")
            wait_until(lambda: consumer._pause > 0.2)  # it has failed
            assert house.pending() == 1
            client.delete(f"{STREAM}:rejected")
            wait_until(house.settled)
    assert house.codes() == ["not-json"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
changed = st.dictionaries(st.sampled_from([*policy(), "other"]), json_values | st.text(max_size=80), min_size=1)
junk = st.binary(max_size=200) | json_values.map(json.dumps) | changed.map(lambda change: policy() | change)


def test_whatever_is_sent_ends_in_the_register_or_the_dead_letters(house: House) -> None:
    @given(st.lists(junk, min_size=100, max_size=200))
    @deterministic(15)
    def send(sent: list[Any]) -> None:
        before = len(house.dead_letters())
        ids = house.send(*sent)
        wait_until(house.settled)
        dead = [letter[b"rejected_id"] for letter in house.dead_letters()][before:]
        assert len(set(dead)) == len(dead)
        assert set(dead) <= set(ids)
        assert all(house.codes())
        (after,) = house.send(policy(f"after-{before}"))
        wait_until(house.settled)
        assert f"after-{before}" in house.in_force(), after

    with house.consuming():
        send()
    assert {"not-json", "not-an-object", "value-not-text", "name-unknown"} <= set(house.codes())


def test_an_order_to_stop_is_obeyed_at_once_and_loses_nothing(house: House) -> None:
    house.send(*(policy(f"A-{number}") for number in range(300)))
    stop = threading.Event()
    consumer = house.consumer(stop, pace=type(QUICK)(batch=20))
    thread = threading.Thread(target=consumer.run)
    thread.start()
    wait_until(house.in_force)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
    assert house.pending() == 0
    drain(house)
    assert len(house.in_force()) == house.deposits() == 300
