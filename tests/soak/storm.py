"""A live alliance in a storm: policies arrive by all doors, processes are killed outright, checks go on and are judged.

One seed says what arrives, who is killed and when; what that meets is up to the machine. Whoever was killed is started
again as its operator would.
"""

import contextlib
import datetime as dt
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

from books import EMPTY, Books, Person, Policy, Step
from doors import Door, Work
from embedded_redis import EmbeddedRedis
from file_doors import Files, Snapshots
from judge import TICK_SECONDS, Judge
from killer import Killer
from live import LiveAlliance, china_today, wait_for_ticks, write_policies
from opened import open_custody
from rest_door import Rest
from servers import Servers
from stream_door import Stream

from insurer_agent.embedded_postgres import EmbeddedPostgres
from protocol.stamps import as_of_tick

STREAMING = (1, 2)
"""The members with a Redis stream."""
DUMPING = 3
"""The member whose house can only dump what is in force, for some of its policies."""
PERSONS_AT_ONCE = 24
LOW_PORT, HIGH_PORT = 20_000, 31_000
"""Below the ports that the system gives to connections: what is down must not find its port taken."""
SETTLE_SECONDS = 300


class Storm:
    """The alliance, its doors, the books, the killer and the judge. Use it as a context, and from the main thread."""

    def __init__(self, root: Path, members: int, seed: int, tell: Callable[[str], None]) -> None:
        self.seed = seed
        self.tell = tell
        self.books = Books()
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self._root = root
        self._members = range(1, members + 1)
        self._chance = random.Random(repr((seed, "storm")))  # noqa: S311  a test's
        self._numbers = iter(range(1, 1_000_000))
        self._people: list[Person] = []
        self._settled: set[Person] = set()
        self._unfinished = 0
        self._lock = threading.Lock()
        self._undo = contextlib.ExitStack()

    # --- start and end

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            (self._root / "redis").mkdir()
            ports = _free_ports(len(self._members) + 2)
            self._postgres = EmbeddedPostgres(self._root / "postgres", port=ports[-1])
            undo.callback(self._postgres.stop)
            self._postgres.start()
            redis = undo.enter_context(EmbeddedRedis(self._root / "redis"))
            for member in self._members:
                write_policies(self._root / "policies", member, [])
            place = ("--database", self._postgres.dsn(), "--port-base", str(ports[0]))
            self._alliance = LiveAlliance(len(self._members), self._root / "policies", self._root / "state", *place)
            self._alliance.start()
            undo.callback(self._alliance.stop, seconds=120)  # what was restarted last may still be starting
            self.servers = Servers(self._root, self._alliance, redis)
            undo.callback(self.servers.end)
            self.doors = self._open_doors(redis)
            undo.callback(self._close_doors)
            for stream in self._streams():
                self.servers.consume(stream)
            files = [door for door in self.doors.values() if isinstance(door, Files)]
            at_redis = (redis, self._root / "redis")
            doors = (files, self._streams())
            self.killer = Killer(self.servers, self._postgres, at_redis, doors, lambda: self.feed(6), self.seed)
            self.judge = Judge(self._alliance, self.books, self.fail, self.seed)
            self.judge.start()
            undo.callback(self.judge.stop)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _open_doors(self, redis: EmbeddedRedis) -> dict[tuple[str, int], Door]:
        doors: list[Door] = []
        for member in self._members:
            entry, state = self._alliance.member(member), self._alliance.member_state(member)
            doors.append(Files(member, self._give_next, self.fail, self.seed, state))
            doors.append(
                Rest(
                    member,
                    self._give_next,
                    self.fail,
                    self.seed,
                    (entry["url"], entry["api_key"]),
                    self._alliance.context,
                )
            )
        dumping = self._alliance.member_state(DUMPING)
        doors.append(Snapshots(DUMPING, self._give_next, self.fail, self.seed, dumping))
        doors += [Stream(member, self._give_next, self.fail, self.seed, redis) for member in STREAMING]
        for door in doors:
            door.start()
        return {(door.name, door.member): door for door in doors}

    def _close_doors(self) -> None:
        for door in self.doors.values():
            door.tell_to_stop()
        for door in self.doors.values():
            door.stop()

    def _streams(self) -> list[Stream]:
        return [door for door in self.doors.values() if isinstance(door, Stream)]

    def fail(self, what: str) -> None:
        """Note what must never happen."""
        self.faults.append(what)

    # --- what arrives

    def feed(self, lives: int, persons: int = 0) -> None:
        """Have so many policies more begin their lives, of persons of whom so many are new."""
        self._people += [("passport", f"E{next(self._numbers):08d}") for _ in range(persons)]
        for _ in range(lives):
            policy = self._life()
            self.books.add(policy)
            with self._lock:
                self._unfinished += 1
            self._give(policy)
        self.judge.people = self._people[-2 * PERSONS_AT_ONCE :]

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

    def _give_next(self, work: Work) -> None:
        self._give(work.policy)

    # --- kills

    def strike(self, kind: str) -> None:
        """Kill one of a kind, and see to it that all is up again."""
        self.killer.strike(kind)
        self._tend()

    def _tend(self) -> None:
        self.counts["found down"] += self.servers.tend()
        if not self._postgres.running:
            self.fail("PostgreSQL stopped by itself")
            self._postgres.start()

    # --- the reckoning

    def settle(self) -> None:
        """Wait until all that was sent is taken and counts, then compare everything with the plain sum."""
        self._wait("all that was sent to be taken", lambda: self._unfinished == 0)
        self._wait("all servers to be ready", self.servers.are_ready)
        self._wait("all deposits to be delivered", lambda: all(map(self._is_delivered, self._members)))
        wait_for_ticks()
        now = as_of_tick(time.time(), TICK_SECONDS)
        for policy in self.books.policies:
            for step in policy.steps:
                step.counts_from = min(now, step.counts_from or now)
        self._compare_custody()
        self._compare_verdicts()
        self.tell(f"compared {self.counts['deposits opened']} deposits and the verdicts with the plain sum")
        for stream in self._streams():
            if letters := stream.rejected():
                self.fail(f"dead letters of member {stream.member}: {letters[:3]}")
        self.counts["times settled"] += 1

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SETTLE_SECONDS
        while not condition():
            if self.faults:
                return
            if time.monotonic() > deadline:
                self.fail(f"waited {SETTLE_SECONDS} s in vain for {what}: {self._where()}")
                return
            self._tend()
            threading.Event().wait(0.3)
        self.tell(f"waited for {what}")

    def _where(self) -> dict[str, object]:
        """Return what is still on its way, for whoever reads a failure."""
        left = [
            (one.number, one.member, step.door, step.event)
            for one in self.books.policies
            for step in one.next_steps()[:1]
        ]
        statuses = {}
        for member in self._members:
            with contextlib.suppress(OSError):
                statuses[member] = self._alliance.request(member, "GET", "/v1/status").body
        return {"not taken": left[:10], "statuses": statuses}

    def _is_delivered(self, member: int) -> bool:
        try:
            answer = self._alliance.request(member, "GET", "/v1/status")
        except OSError:
            return False
        names = ("deposits_unmade", "deposits_incomplete", "deposits_set_aside")
        return answer.status == 200 and not any(answer.body[name] for name in names)

    def _compare_custody(self) -> None:
        opened = open_custody(self._alliance.state, len(self._members), self.books.persons())
        for fault in opened.faults[:10]:
            self.fail(fault)
        plain = self.books.sums()
        for place in sorted(plain.keys() | opened.sums.keys(), key=repr):
            if plain.get(place, EMPTY) != opened.sums.get(place, EMPTY):
                self.fail(f"{place}: the plain sum is {plain.get(place)}, the custodians hold {opened.sums.get(place)}")
        owed = {member: count for member, count in self.books.changes().items() if count}
        if owed != opened.deposits:
            self.fail(f"deposits owed {owed}, held {opened.deposits}")
        self.counts["deposits opened"] = sum(opened.deposits.values())
        self.counts["rows opened"] = opened.rows

    def _compare_verdicts(self) -> None:
        """Ask about everyone of whom anything may be new."""
        persons = [person for person in self.books.persons() if person not in self._settled]
        self._settled |= set(persons) - set(self._people[-2 * PERSONS_AT_ONCE :])
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(self.judge.settle, persons))

    def summary(self) -> dict[str, object]:
        counts = self.counts + self.killer.counts + self.judge.counts
        for door in self.doors.values():
            counts += door.counts
        told = {"seed": self.seed, "members": len(self._members), "persons": len(self.books.persons())}
        return told | {"policies": len(self.books.policies)} | dict(sorted(counts.items())) | {"faults": self.faults}


def _free_ports(count: int) -> list[int]:
    """Return so many ports in a row that are free now."""
    while True:
        base = random.SystemRandom().randrange(LOW_PORT, HIGH_PORT)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(base, base + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return list(range(base, base + count))
