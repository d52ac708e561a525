"""The command `insurer-agent consume` survives kills and the loss of Redis and PostgreSQL, and logs no business."""

import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest
from consuming import STREAM, Command, House, make_state, policy, wait_until
from embedded_redis import EmbeddedRedis

from insurer_agent.embedded_postgres import EmbeddedPostgres

QUICK = ("--batch", "20", "--claim-after", "1", "--patience", "2")


@pytest.fixture
def house(redis_server: EmbeddedRedis, database: str) -> Iterator[House]:
    with redis_server.client() as client:
        client.flushall()
    opened = House.open(redis_server, database)
    yield opened
    opened.database.close()


@pytest.fixture
def state(database: str, tmp_path: Path) -> Path:
    return make_state(tmp_path / "state", database)


def drained(house: House, state: Path, log: Path, *arguments: str) -> None:
    """Run the command until nothing is left."""
    with Command(state, house.redis.url, log, arguments or QUICK) as command:
        wait_until(house.settled, 120)
        assert command.end(signal.SIGTERM) == 0


def many(policies: int, seed: int) -> tuple[list[dict[str, str]], dict[str, int]]:
    """Return events of many policies, entangled and with repeats, and the yuan that each comes to."""
    chance = random.Random(seed)  # noqa: S311  a test's
    queues = []
    expected = {}
    for number in range(policies):
        name, yuan = f"P-{number}", chance.randrange(1, 1000)
        queue = [policy(name, amount=str(yuan))]
        for step in range(chance.randrange(4)):
            yuan = 1000 + 10 * step + chance.randrange(10)  # another one every time: the same again is a repeat
            queue.append(policy(name, "amend", str(yuan)))
        if chance.random() < 0.2:
            yuan = 0
            queue.append(policy(name, "cancel", None))
        expected[name] = yuan
        queues.append([event for event in queue for _ in range(chance.choice([1, 1, 2]))])
    events = []
    while queues:
        queue = chance.choice(queues)
        events.append(queue.pop(0))
        if not queue:
            queues.remove(queue)
    return events, expected


@pytest.mark.parametrize("names", [("one",), pytest.param(("one", "two"), marks=pytest.mark.long)])
def test_kills_at_any_point_lose_nothing_and_count_nothing_twice(
    house: House, state: Path, tmp_path: Path, names: tuple[str, ...]
) -> None:
    events, expected = many(500, len(names))
    chance = random.Random(5)  # noqa: S311  a test's
    log = tmp_path / "log"
    for _ in range(6):  # rounds: more comes in while consumers are killed
        some, events = events[: len(events) // 3], events[len(events) // 3 :]
        house.send(*some)
        with ExitStack() as killed:  # by SIGKILL
            for name in names:
                killed.enter_context(Command(state, house.redis.url, log, (*QUICK, "--consumer", name)))
            left = max(house.undelivered() - chance.randrange(1, 100), 0)
            wait_until(lambda left=left: house.undelivered() <= left)
            until = time.monotonic() + chance.random() / 20
            wait_until(lambda until=until: time.monotonic() > until)  # at a random point of a batch
    house.send(*events)
    drained(house, state, log)
    assert house.in_force() == {name: yuan * 100 for name, yuan in expected.items()}
    assert house.dead_letters() == []
    changes = {(e["policy_number"], e["event"], e.get("insured_amount")) for e in many(500, len(names))[0]}
    assert house.deposits() == len(changes)


def test_redis_that_is_killed_and_started_again_is_waited_for(
    house: House, state: Path, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    events, expected = many(300, 3)
    with Command(state, redis_server.url, tmp_path / "log", QUICK) as command:
        house.send(*events[:300])
        wait_until(house.in_force)
        redis_server.kill()
        try:
            wait_until(lambda: "ConnectionError" in command.log())
        finally:
            redis_server.start()
        house.send(*events[300:])
        wait_until(house.settled)
        assert command.end(signal.SIGTERM) == 0
    assert house.in_force() == {name: yuan * 100 for name, yuan in expected.items()}
    assert house.dead_letters() == []


def test_redis_that_has_forgotten_all_but_what_is_sent_again_changes_nothing(
    house: House, state: Path, tmp_path: Path
) -> None:
    events, expected = many(50, 4)
    house.send(*events)
    drained(house, state, tmp_path / "log")
    before = house.deposits()
    with house.redis.client() as client:
        client.flushall()
    house.send(*events)
    drained(house, state, tmp_path / "log")
    assert house.in_force() == {name: yuan * 100 for name, yuan in expected.items()}
    assert (house.deposits(), house.dead_letters()) == (before, [])


def test_postgresql_that_is_away_is_waited_for_and_nothing_is_a_dead_letter(
    redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    with redis_server.client() as client:
        client.flushall()
    server = EmbeddedPostgres(tmp_path / "postgres")
    server.start()
    server.create_database("agent")
    port = psycopg.conninfo.conninfo_to_dict(server.dsn())["port"]
    state = make_state(tmp_path / "state", server.dsn("agent"))
    events, expected = many(200, 6)
    try:
        house = House.open(redis_server, server.dsn("agent"))
        with Command(state, redis_server.url, tmp_path / "log", QUICK) as command:
            house.send(*events[:200])
            wait_until(house.in_force)
            house.database.close()
            server.stop()
            house.send(*events[200:])
            wait_until(lambda: command.log().count("consuming failed") > 2)
            server = EmbeddedPostgres(tmp_path / "postgres", port=int(port))
            server.start()
            wait_until(house.settled)
            assert command.end(signal.SIGTERM) == 0
        house = House.open(redis_server, server.dsn("agent"))
        assert house.in_force() == {name: yuan * 100 for name, yuan in expected.items()}
        assert house.dead_letters() == []
        house.database.close()
    finally:
        server.stop()


CANARY = "CANARY77"
COMMANDS = ["+xreadgroup", "+xack", "+xadd", "+xautoclaim", "+xpending", "+xlen", "+xinfo", "+xgroup"]
COMMANDS += ["+type", "+watch", "+unwatch", "+multi", "+exec"]  # all that deploy/README.md names
CANARIES = (CANARY, "7654321", "E77777777", "s3cret")


def test_nothing_that_is_written_names_a_person_an_amount_a_policy_or_a_password(
    house: House, state: Path, tmp_path: Path, redis_server: EmbeddedRedis
) -> None:
    secret = {"number": CANARY, "amount": "7654321.00", "document_number": "E77777777"}
    with redis_server.client() as client:
        client.acl_setuser(
            "consumer", enabled=True, passwords=["+s3cret"], keys=[STREAM, f"{STREAM}:rejected"], commands=COMMANDS
        )
    url = redis_server.url.replace("unix://", "unix://consumer:s3cret@")
    with Command(state, url, tmp_path / "log", QUICK) as command:
        house.send(
            policy(**secret),
            policy(**secret),
            policy(**secret | {"amount": "7654321.01"}),
            policy(**secret, product=CANARY),
            policy(**secret, event="amend") | {"insured_amount": "7654321.0000"},
            policy(CANARY + "x", "cancel", None, document_number="E77777777"),
            policy(**secret) | {CANARY: CANARY},
            f'{{"{CANARY}": 7654321'.encode(),
            policy(**secret, issued_on=CANARY),
        )
        with redis_server.client() as client:
            client.xadd(STREAM, {CANARY: "E77777777"})
            wait_until(house.settled)
            assert len(house.dead_letters()) == 8
            client.set(f"{STREAM}:rejected2", CANARY)
            client.rename(f"{STREAM}:rejected2", f"{STREAM}:rejected")
            house.send(f"{CANARY} is no JSON")
            wait_until(lambda: "DeadLettersError" in command.log())
            client.delete(f"{STREAM}:rejected")
            wait_until(house.settled)
            house.database.run("a fault", lambda at: at.execute("ALTER TABLE policy RENAME TO gone"))
            house.send(policy(**secret, event="cancel"))
            wait_until(lambda: "UndefinedTable" in command.log())
            house.database.run("the end of a fault", lambda at: at.execute("ALTER TABLE gone RENAME TO policy"))
            wait_until(house.settled)
            client.acl_setuser("consumer", enabled=True, reset_passwords=True)
            client.client_kill_filter(_type="normal", skipme=True)
            wait_until(lambda: "AuthenticationError" in command.log())
            client.acl_deluser("consumer")
        arguments = Path(f"/proc/{command.process.pid}/cmdline").read_bytes().decode()
        assert command.end(signal.SIGTERM) == 0
    for canary in CANARIES:
        assert canary not in command.log()
        assert canary not in arguments
    assert " taken: " in command.log()


def test_sigterm_ends_after_the_batch_under_way(house: House, state: Path, tmp_path: Path) -> None:
    house.send(*(policy(f"A-{number}") for number in range(2000)))
    with Command(state, house.redis.url, tmp_path / "log", QUICK) as command:
        wait_until(house.in_force)
        assert command.end(signal.SIGTERM) == 0
    assert house.pending() == 0
    done = len(house.in_force())
    assert 0 < done <= 2000
    assert house.undelivered() == 2000 - done
    assert f"{done} taken: {done} accepted, 0 corrected, 0 repeated, 0 rejected; 0 waiting, 0 pending" in command.log()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("", "REDIS in the environment"),
        ("http://:s3cret@x", "the Redis URL is not redis://"),
        ("redis://x:s3cret", "the Redis URL is not redis://"),
        ("redis://:s3cret@x/?colour=s3cret", "an option that is not known"),
    ],
)
def test_a_url_that_cannot_be_used_is_told_without_being_shown(
    house: House, state: Path, tmp_path: Path, url: str, told: str
) -> None:
    with Command(state, url, tmp_path / "log") as command:
        assert command.process.wait(60) == 2
    assert told in command.log()
    assert "s3cret" not in command.log()
    assert house.in_force() == {}
