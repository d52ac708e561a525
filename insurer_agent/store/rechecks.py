"""What a recheck still has to ask: the insured persons with a policy in force in a rule's window, a lane a rule.

The register is gone through once, in constant memory, and what it calls for is spooled in the database, by HMACs alone.
A lane leaves the spool when it is settled; those that have no answer stay, with the reason, to be asked again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from insurer_agent.store.database import Database, Rows
from insurer_agent.store.register import Record, Register, insured_of
from insurer_agent.store.vault import Vault
from protocol.identity import Identity
from protocol.manifest import Rule
from protocol.party import RandomBytes

_ROWS = 1_000
_SETTLE = "DELETE FROM recheck_lane WHERE shard = %s AND person_key = %s AND rule_id = %s"
_LEAVE = "UPDATE recheck_lane SET reason = %s WHERE shard = %s AND person_key = %s AND rule_id = %s"
Place = tuple[int, bytes, str]
"""Shard, key of the person in this run, rule id: the order in which lanes are asked."""
FIRST: Place = (-1, b"", "")


def in_window(record: Record, rule: Rule, as_of: int) -> bool:
    """Tell whether a policy counts under a rule on a day: in force, of its products, in the window or later."""
    return not record.cancelled and record.product in rule.products and record.day >= rule.window_start(as_of)


@dataclass(frozen=True)
class OpenLane:
    """A person to be asked about under a rule, with the policies for which he is, as they stand."""

    place: Place
    policies: tuple[Record, ...] = field(repr=False)
    reason: str | None

    @property
    def shard(self) -> int:
        """The person's shard."""
        return self.place[0]

    @property
    def rule_id(self) -> str:
        """The rule's id."""
        return self.place[2]

    @property
    def insured(self) -> Identity:
        """The person."""
        return insured_of(self.policies[0])


@dataclass(frozen=True)
class Extent:
    """How much there is: persons, and lanes, of which a person has one a rule."""

    persons: int
    lanes: int


class Spool:
    """The lanes of one recheck; one process at a time has one."""

    def __init__(
        self,
        database: Database,
        register: Register,
        vault: Vault,
        shard_of: Callable[[Identity], int],
        random: RandomBytes,
    ) -> None:
        self._database = database
        self._register = register
        self._vault = vault
        self._shard_of = shard_of
        self._run = random(16)

    def collect(self, rules: Sequence[Rule], today: int) -> Extent:
        """Forget an earlier run's lanes and put in those that the register calls for as of a day, an ordinal."""

        def transaction(connection: Rows) -> None:
            connection.execute("TRUNCATE recheck_lane")
            policies = self._register.each(connection)
            while chunk := list(islice(policies, _ROWS)):
                lanes: dict[Place, list[bytes]] = {}
                for key, record in chunk:
                    for rule in rules:
                        if in_window(record, rule, today):
                            lanes.setdefault(self._place(record, rule), []).append(key)
                with connection.cursor() as cursor:
                    cursor.executemany(
                        "INSERT INTO recheck_lane (shard, person_key, rule_id, policy_keys) VALUES (%s, %s, %s, %s)"
                        " ON CONFLICT (shard, person_key, rule_id)"
                        " DO UPDATE SET policy_keys = recheck_lane.policy_keys || EXCLUDED.policy_keys",
                        [(*place, keys) for place, keys in lanes.items()],
                    )

        self._database.run("collect whom to check again", transaction)
        return self.extent()

    def _place(self, record: Record, rule: Rule) -> Place:
        insured = insured_of(record)
        return self._shard_of(insured), self._vault.index("recheck", self._run, insured.encode()), rule.id

    def extent(self) -> Extent:
        """Return how much is not settled."""
        query = "SELECT count(DISTINCT (shard, person_key)), count(*) FROM recheck_lane"
        row = self._database.run("count open lanes", lambda connection: connection.execute(query).fetchone())
        assert row is not None
        return Extent(*row)

    def next(self, after: Place, most: int, reasons: Sequence[str] | None = None) -> list[OpenLane]:
        """Return up to `most` lanes after a place, all of one shard: those not asked yet or left for one of `reasons`,
        any without. What is no longer in force has no policies.
        """
        wanted = None if reasons is None else list(reasons)

        def transaction(connection: Rows) -> list[OpenLane]:
            rows = connection.execute(
                "SELECT shard, person_key, rule_id, policy_keys, reason FROM recheck_lane"
                " WHERE (shard, person_key, rule_id) > (%s, %s, %s)"
                " AND (reason IS NULL OR %s::text[] IS NULL OR reason = ANY(%s))"
                " ORDER BY shard, person_key, rule_id LIMIT %s",
                (*after, wanted, wanted, most),
            ).fetchall()
            rows = [row for row in rows if row[0] == rows[0][0]]
            records = self._register.peek(connection, {bytes(key) for row in rows for key in row[3]})
            return [
                OpenLane(
                    (shard, bytes(person), rule_id),
                    tuple(records[bytes(key)] for key in keys if not records[bytes(key)].cancelled),
                    reason,
                )
                for shard, person, rule_id, keys, reason in rows
            ]

        return self._database.run("read open lanes", transaction, snapshot=True)

    def left(self, most: int) -> Iterator[OpenLane]:
        """Yield all lanes that are not settled, reading `most` at once."""
        place = FIRST
        while lanes := self.next(place, most):
            yield from lanes
            place = lanes[-1].place

    def close(self, settled: Sequence[OpenLane], unanswered: Sequence[tuple[OpenLane, str]]) -> None:
        """Take settled lanes out, and note why others have no answer."""

        def transaction(connection: Rows) -> None:
            with connection.cursor() as cursor:
                cursor.executemany(_SETTLE, [lane.place for lane in settled])
                cursor.executemany(_LEAVE, [(why, *lane.place) for lane, why in unanswered])

        self._database.run("close lanes", transaction)

    def forget(self) -> None:
        """Take all lanes out."""
        self._database.run("forget a recheck", lambda connection: connection.execute("TRUNCATE recheck_lane"))
