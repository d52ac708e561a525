"""A live alliance in a storm: policies arrive by all doors, processes are killed outright, checks go on and are judged.

One seed says what arrives, who is killed and when; what that meets is up to the machine. Whoever was killed is started
again as its operator would.
"""

import contextlib
import datetime as dt
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import psycopg
from books import LIMIT, Books, Person, Policy, Step, verdict_of
from doors import Door, Files, Rest, Snapshots, Stream, Work, consumer, yuan
from embedded_redis import EmbeddedRedis
from live import LiveAlliance, china_today, parent_of, pids_of, wait_for_ticks, wait_until, write_policies
from opened import open_custody

from insurer_agent.embedded_postgres import EmbeddedPostgres
from protocol.stamps import as_of_tick, tick_at

TICK_SECONDS = 1
STREAMING = (1, 2)
"""The members with a Redis stream."""
DUMPING = 3
"""The member whose house can only dump what is in force, for some of its policies."""
BUDGET = 40
"""Checks of one person by one member; ten of its budget are left for the end."""
PERSONS_AT_ONCE = 24
LOW_PORT, HIGH_PORT = 20_000, 31_000
"""Below the ports that the system gives to connections: what is down must not find its port taken."""


class Storm:
    """The alliance, its doors, the books and the judge. Use it as a context, and from the main thread alone."""

    def __init__(self, root: Path, members: int, seed: int) -> None:
        self.seed = seed
        self.books = Books()
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self._root = root
        self._members = range(1, members + 1)
        self._chance = random.Random(repr((seed, "storm")))  # noqa: S311  a test's
        self._numbers = iter(range(1, 1_000_000))
        self._people: list[Person] = []
        self._asked: Counter[tuple[Person, int]] = Counter()
        self._unfinished = 0
        self._lock = threading.Lock()
        self._calm = threading.Event()
        self._undo = contextlib.ExitStack()
        self._settled: set[Person] = set()
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    # --- start and end

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            (self._root / "redis").mkdir()
            (self._root / "policies").mkdir()
            ports = _free_ports(len(self._members) + 2)
            self.postgres = EmbeddedPostgres(self._root / "postgres", port=ports[-1])
            undo.callback(self.postgres.stop)
            self.postgres.start()
            self.redis = undo.enter_context(EmbeddedRedis(self._root / "redis"))
            for member in self._members:
                write_policies(self._root / "policies", member, [])
            self.alliance = LiveAlliance(
                len(self._members),
                self._root / "policies",
                self._root / "state",
                *("--database", self.postgres.dsn(), "--port-base", str(ports[0])),
            )
            self.alliance.start()
            undo.callback(self.alliance.stop)
            undo.callback(self._end)
            self.doors = self._open_doors()
            for member in STREAMING:
                self._consume(member)
            self._asker = threading.Thread(target=self._ask, name="asker")
            self._asker.start()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _end(self) -> None:
        self._calm.set()
        for door in self.doors.values():
            door._stop.set()
        for door in self.doors.values():
            if isinstance(door, Files):
                door.kill()
            door.stop()
        self._asker.join(60)
        for process in self._started.values():
            process.kill()
            process.wait()

    def _open_doors(self) -> dict[tuple[str, int], Door]:
        doors: list[Door] = []
        for member in self._members:
            entry, state = self.alliance.member(member), self.alliance.member_state(member)
            doors.append(Files(member, self._taken, self.fail, self.seed, state))
            doors.append(Rest(member, self._taken, self.fail, self.seed, (entry["url"], entry["api_key"])))
        doors.append(Snapshots(DUMPING, self._taken, self.fail, self.seed, self.alliance.member_state(DUMPING)))
        doors += [Stream(member, self._taken, self.fail, self.seed, self.redis) for member in STREAMING]
        for door in doors:
            door.start()
        return {(door.name, door.member): door for door in doors}

    def _streams(self) -> list[Stream]:
        return [door for door in self.doors.values() if isinstance(door, Stream)]

    def fail(self, what: str) -> None:
        """Note what must never happen."""
        self.faults.append(what)

    # --- what arrives

    def feed(self, lives: int, persons: int = 0) -> None:
        """Have so many policies more begin their lives, of persons of whom so many are new."""
        for _ in range(persons):
            self._people.append(("passport", f"E{next(self._numbers):08d}"))
        for _ in range(lives):
            policy = self._life()
            self.books.add(policy)
            with self._lock:
                self._unfinished += 1
            self._give(policy)

    def _life(self) -> Policy:
        """Make up a policy from its issue to its end, each step by one of its member's doors."""
        chance, today = self._chance, china_today()
        number, member = next(self._numbers), chance.choice(self._members)
        product = chance.choice(["accident"] * 5 + ["term_life"])
        day = today - dt.timedelta(days=chance.choice([*range(10, 22)] * 3 + [200]))
        ways = ["file", "rest"] + ["stream"] * (2 if member in STREAMING else 0)
        if member == DUMPING and chance.random() < 0.4:
            ways = ["snapshot"]
        steps = [Step("issue", chance.randrange(1, 900_000_000), 1, day, chance.choice(ways))]
        for later in range(1, 1 + chance.choice([0, 0, 1, 1, 2, 3])):
            # Another date each time: to amend back to an earlier amount is no repeat.
            on = day + dt.timedelta(days=later)
            steps.append(Step("amend", chance.randrange(1, 900_000_000), 1, on, chance.choice(ways)))
        if chance.random() < 0.2:
            steps.append(Step("cancel", 0, 0, day + dt.timedelta(days=len(steps)), chance.choice(ways)))
        person = chance.choice(self._people[-PERSONS_AT_ONCE:])
        return Policy(member, f"P-{number}", person, product, day, steps)

    def _give(self, policy: Policy) -> None:
        steps = policy.next_steps()
        if steps:
            self.doors[steps[0].door, policy.member].give(Work(policy, steps))
        else:
            with self._lock:
                self._unfinished -= 1

    def _taken(self, work: Work) -> None:
        self._give(work.policy)

    # --- checks

    def _ask(self) -> None:
        """Ask checks all the time, on the edge of what is known to be right, and judge every answer."""
        chance = random.Random(repr((self.seed, "asker")))  # noqa: S311  a test's
        try:
            while not self._calm.wait(chance.uniform(0.05, 0.3)):
                if self._people:
                    self._ask_one(chance)
        except Exception as error:  # noqa: BLE001  a judge that ends unseen would be a test of nothing
            self.fail(f"the asker broke: {error!r}")

    def _ask_one(self, chance: random.Random) -> None:
        person, member = chance.choice(self._people[-2 * PERSONS_AT_ONCE :]), chance.choice(self._members)
        if self._asked[person, member] >= BUDGET:
            return
        self._asked[person, member] += 1
        self._look(person)
        now = time.time()
        low, high = self.books.span(person, as_of_tick(now, TICK_SECONDS), now, china_today())
        proposed = max(0, chance.choice([LIMIT - high, LIMIT - high, LIMIT - low + 1, LIMIT - low + 1, LIMIT - low]))
        self.judged(person, member, proposed)

    def judged(self, person: Person, member: int, proposed: int) -> str:
        """Ask a check and return its verdict, having noted it if it was wrong."""
        began = time.time()
        as_of = as_of_tick(began, TICK_SECONDS)
        body = {
            "subject": dict(zip(("document_type", "document_number"), person, strict=True)),
            "rule": "accident-30d",
            "proposed_amount": yuan(proposed),
            "reference": "soak",
        }
        try:
            answer = self.alliance.request(member, "POST", "/v1/checks", body)
        except (OSError, ValueError):
            self.counts["checks without an answer"] += 1
            return "indeterminate"
        if answer.status != 200:
            self.counts[f"checks with status {answer.status}"] += 1
            if answer.status < 500:
                self.fail(f"a check was refused: {answer.status} {answer.body}")
            return "indeterminate"
        verdict: str = answer.body["verdict"]
        self.counts[f"checks {verdict}"] += 1
        if verdict == "indeterminate":
            self.counts[f"indeterminate: {answer.body['reason']}"] += 1
            return verdict
        low, high = self.books.span(person, as_of, time.time(), china_today())
        right = verdict_of(low, high, proposed)
        self.counts["checks that only one verdict was right for"] += right is not None
        if right not in (None, verdict):
            self.fail(
                f"member {member} was told {verdict} of {person}, {proposed} fen proposed, while the total was"
                f" {low} to {high} fen: from {began} on, as of tick {as_of}, at {answer.body['checked_at']}"
            )
        return verdict

    def _look(self, person: Person) -> None:
        """Find out which of a person's policies checks must see by now, from the agents that took them."""
        for member in self._members:
            mine = [policy for policy in self.books.of(person) if policy.member == member and policy.done]
            steps = [step for policy in mine for step in policy.steps[: policy.done] if step.counts_from is None]
            if not steps:
                continue
            with contextlib.suppress(OSError, ValueError):
                answer = self.alliance.request(member, "GET", f"/v1/policies/{mine[-1].number}")
                now = tick_at(time.time(), TICK_SECONDS)
                if answer.status == 404:
                    self.fail(f"member {member} does not know {mine[-1].number}, which it took")
                if answer.status == 200 and all(item["visible_to_checks"] for item in answer.body["policies"]):
                    for step in steps:
                        step.counts_from = min(now, step.counts_from or now)  # it may be settled meanwhile

    # --- kills

    def strike(self, kind: str) -> None:
        """Kill at a random point, start again what was killed, and count it."""
        self._pause(0.1, 1.2)
        began = time.monotonic()
        getattr(self, "_strike_" + kind.replace("-", "_"))()
        self.counts[f"killed: {kind}"] += 1
        self.counts["seconds of striking"] += round(time.monotonic() - began)

    def _pause(self, least: float, most: float) -> None:
        threading.Event().wait(self._chance.uniform(least, most))

    def _strike_agent(self) -> None:
        self._kill_servers([self.alliance.member_state(self._chance.choice(self._members))])

    def _strike_two_custodians(self) -> None:
        victims = self._chance.sample(self._members, 2)
        self._kill_servers([self.alliance.member_state(victim) for victim in victims])

    def _strike_service(self) -> None:
        self._kill_servers([self.alliance.state / "service"])

    def _strike_agent_worker(self) -> None:
        self._kill_worker(self.alliance.member_state(self._chance.choice(self._members)))

    def _strike_service_worker(self) -> None:
        self._kill_worker(self.alliance.state / "service")

    def _kill_servers(self, states: list[Path]) -> None:
        for state in states:
            pids = pids_of(state)
            for pid in pids:
                if parent_of(pid) not in pids:  # gunicorn's master; its worker must not outlive it
                    os.kill(pid, signal.SIGKILL)
        for state in states:
            wait_until(lambda state=state: not pids_of(state))
        self._pause(0.0, 1.0)
        for state in states:
            self._serve(state)

    def _kill_worker(self, state: Path) -> None:
        pids = pids_of(state)
        for pid in pids:
            if parent_of(pid) in pids:
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda pid=pid: pid not in pids_of(state))

    def _serve(self, state: Path) -> None:
        module = "service.cli" if state.name == "service" else "insurer_agent.cli"
        self._start(f"serve {state.name}", [module, "serve", "--state", str(state)])

    def _start(self, name: str, command: list[str]) -> None:
        if name in self._started:
            self._started[name].wait(60)
        with (self._root / f"{name.replace(' ', '-')}.log").open("ab") as log:
            self._started[name] = subprocess.Popen([sys.executable, "-m", *command], stdout=log, stderr=log)

    def _consume(self, member: int) -> None:
        stream = self.doors["stream", member]
        assert isinstance(stream, Stream)
        if f"consume {member}" in self._started:
            self._started[f"consume {member}"].wait(60)
        log = self._root / f"consume-{member}.log"
        self._started[f"consume {member}"] = consumer(self.alliance.member_state(member), stream, self.redis, log)

    def _strike_consumer(self) -> None:
        member = self._chance.choice(STREAMING)
        process = self._started[f"consume {member}"]
        process.kill()
        process.wait()
        self._pause(0.0, 0.5)
        self._consume(member)

    def _strike_import(self) -> None:
        """Kill an import under way, at any point of the two seconds that it takes or so."""
        files = [door for door in self.doors.values() if isinstance(door, Files)]
        for _ in range(3):
            wait_until(lambda: any(door.is_running for door in files), 120)
            door = self._chance.choice([door for door in files if door.is_running] or files)
            at = self._chance.uniform(0.1, 2.5)
            left = max(0.0, at - (time.monotonic() - door.began))
            threading.Event().wait(left)
            self.counts["imports killed"] += door.kill()

    def _strike_postgres_backend(self) -> None:
        """Kill one of the server's processes, in a transaction if there is one: all others end, and it recovers."""
        query = (
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'insurer-agent'"
            " ORDER BY xact_start IS NULL, random() LIMIT 1"
        )
        with psycopg.connect(self.postgres.dsn(), autocommit=True) as connection:
            found = connection.execute(query).fetchone()
        assert found is not None
        os.kill(found[0], signal.SIGKILL)

    def _strike_postgres(self) -> None:
        process = self.postgres._process
        assert process is not None
        process.kill()
        process.wait()
        self._pause(0.0, 1.0)
        self.postgres.start()

    def _strike_redis(self) -> None:
        self.redis.kill()
        self._pause(0.0, 1.0)
        self.redis.start()

    def _strike_redis_emptied(self) -> None:
        """Have Redis come back with nothing: the houses tell it again all that they told."""
        with contextlib.ExitStack() as locks:
            for stream in self._streams():
                locks.enter_context(stream.lock)
            self.redis.kill()
            for file in (self._root / "redis").glob("appendonly*"):
                shutil.rmtree(file) if file.is_dir() else file.unlink()
            self.redis.start()
            for stream in self._streams():
                stream.tell_again()

    def tend(self) -> None:
        """Start again what has ended by itself, as a service manager does: at a start without its database, say."""
        for state in [*map(self.alliance.member_state, self._members), self.alliance.state / "service"]:
            if not pids_of(state):
                self.counts["found down"] += 1
                self._serve(state)
        for member in STREAMING:
            if self._started[f"consume {member}"].poll() is not None:
                self.counts["found down"] += 1
                self._consume(member)
        if not self.postgres.running:
            self.fail("PostgreSQL stopped by itself")
            self.postgres.start()

    # --- the reckoning

    def settle(self) -> None:
        """Wait until all that was sent is taken and counts, then compare everything with the plain sum."""
        self._wait("all that was sent to be taken", lambda: self._unfinished == 0)
        self._wait("all servers to be ready", self._is_ready)
        self._wait("all deposits to be delivered", lambda: all(map(self._is_delivered, self._members)))
        wait_for_ticks()
        now = as_of_tick(time.time(), TICK_SECONDS)
        for policy in self.books.policies:
            for step in policy.steps:
                step.counts_from = min(now, step.counts_from or now)
        self._compare_custody()
        self._compare_verdicts()
        for stream in self._streams():
            if letters := stream.rejected():
                self.fail(f"dead letters of member {stream.member}: {letters[:3]}")
        self.counts["times settled"] += 1

    def _wait(self, what: str, condition: Callable[[], bool], seconds: float = 240) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert not self.faults, self.faults
            assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}: {self.where()}"
            self.tend()
            threading.Event().wait(0.3)

    def where(self) -> dict[str, object]:
        """Return what is still on its way, for whoever reads a failure."""
        left = [
            (policy.number, policy.member, step.door, step.event)
            for policy in self.books.policies
            for step in policy.next_steps()[:1]
        ]
        statuses = {}
        for member in self._members:
            with contextlib.suppress(OSError):
                statuses[member] = self.alliance.request(member, "GET", "/v1/status").body
        return {"seed": self.seed, "unfinished": left[:10], "statuses": statuses, "counts": dict(self.counts)}

    def _is_ready(self) -> bool:
        urls = [self.alliance.local["service_url"], *(entry["url"] for entry in self.alliance.local["members"])]
        return all(map(self.alliance.ready_at, urls))

    def _is_delivered(self, member: int) -> bool:
        try:
            answer = self.alliance.request(member, "GET", "/v1/status")
        except OSError:
            return False
        names = ("deposits_unmade", "deposits_incomplete", "deposits_set_aside")
        return answer.status == 200 and not any(answer.body[name] for name in names)

    def _compare_custody(self) -> None:
        opened = open_custody(self.alliance.state, len(self._members), self.books.persons())
        for fault in opened.faults[:10]:
            self.fail(fault)
        plain = self.books.sums()
        for place in sorted(plain.keys() | opened.sums.keys(), key=repr):
            if plain.get(place, (0, 0)) != opened.sums.get(place, (0, 0)):
                self.fail(f"{place}: the plain sum is {plain.get(place)}, the custodians hold {opened.sums.get(place)}")
        owed = {member: count for member, count in self.books.changes().items() if count}
        if owed != opened.deposits:
            self.fail(f"deposits owed {owed}, held {opened.deposits}")
        self.counts["deposits opened"] = sum(opened.deposits.values())
        self.counts["rows opened"] = opened.rows

    def _compare_verdicts(self) -> None:
        """Ask of everyone of whom anything is new, at the limit and one fen above."""
        persons = [person for person in self.books.persons() if person not in self._settled]
        current = set(self._people[-2 * PERSONS_AT_ONCE :])
        self._settled |= {person for person in persons if person not in current}
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(self._compare_person, persons))

    def _compare_person(self, person: Person) -> None:
        now = time.time()
        low, high = self.books.span(person, as_of_tick(now, TICK_SECONDS), now, china_today())
        if low != high:
            self.fail(f"the books of {person} are not closed: {low} to {high}")
        for proposed in {max(0, LIMIT - low), max(0, LIMIT - low + 1)}:
            right = verdict_of(low, high, proposed)
            if self._clear(person, proposed) != right:
                self.fail(f"no answer, or the wrong one, of {person} with {proposed} fen more: {right} is right")

    def _clear(self, person: Person, proposed: int) -> str:
        """Return a verdict, asked for again where a busy machine let a check time out."""
        for attempt in range(12):
            member = self._members[(int(person[1][1:]) + attempt) % len(self._members)]
            verdict = self.judged(person, member, proposed)
            if verdict != "indeterminate":
                return verdict
            threading.Event().wait(0.2)
        return "indeterminate"

    def summary(self) -> dict[str, object]:
        counts = self.counts.copy()
        for door in self.doors.values():
            counts += door.counts
        told = {"seed": self.seed, "members": len(self._members), "persons": len(self.books.persons())}
        return told | {"policies": len(self.books.policies)} | dict(sorted(counts.items())) | {"faults": self.faults}


KINDS = (
    "agent",
    "agent-worker",
    "two-custodians",
    "service",
    "service-worker",
    "import",
    "consumer",
    "postgres",
    "postgres-backend",
    "redis",
    "redis-emptied",
)
"""What is killed. An agent is depositor, custodian and requester in one."""


def _free_ports(count: int) -> list[int]:
    """Return so many ports in a row that are free now."""
    for base in iter(lambda: random.SystemRandom().randrange(LOW_PORT, HIGH_PORT), None):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(base, base + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return list(range(base, base + count))
    raise AssertionError
