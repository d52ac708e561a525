"""Where the processor time of a range-checked deposit goes: each step of `protocol/`, in one process, without I/O.

    .venv/bin/python loadtests/deposit_profile.py [--deposits 64] [--rounds 5]

One batch of an alliance of six, step by step as in SPEC.md, section 5, with stores in memory. Milliseconds of the
processor a deposit, over all parties that take the step; medians of several rounds. `deposits.py` has the whole.
"""

import argparse
import json
import secrets
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from in_memory import Alliance

from protocol.check import shard_of_person
from protocol.committee import preferred_choice
from protocol.deposit import (
    Entry,
    accept_batch,
    accept_commit,
    accept_prepare,
    commit_call,
    confirm,
    decide,
    give_receipts,
    make_deposit,
    opened_proofs,
    prepare_call,
    sign_batch,
)
from protocol.encoding import decode, encode
from protocol.identity import DocumentType, Identity
from protocol.manifest import china_day
from protocol.messages import ISSUE, PrepareAnswer, PrepareCall, RangeOrder
from protocol.stamps import tick_at

T = TypeVar("T")


def main() -> int:
    """Run the rounds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deposits", type=int, default=64, help="a batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("build/deposit_profile.json"))
    args = parser.parse_args()
    alliance, taken = Alliance(), defaultdict[str, list[float]](list)
    for number in range(args.rounds):
        for step, seconds in _round(alliance, number, args.deposits).items():
            taken[step].append(1000 * seconds / args.deposits)
    result = {step: round(statistics.median(values), 3) for step, values in taken.items()}
    result["all"] = round(sum(result.values()), 3)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))
    return 0


def _round(alliance: Alliance, number: int, count: int) -> dict[str, float]:
    seconds: dict[str, float] = defaultdict(float)

    def timed(step: str, work: Callable[[], T]) -> T:
        began = time.process_time()
        result = work()
        seconds[step] += time.process_time() - began
        return result

    random, now, manifest, me = secrets.token_bytes, time.time(), alliance.manifest, alliance.insurer
    people = [Identity(DocumentType.PASSPORT, f"E{number:03d}{person:05d}") for person in range(count)]
    assert {shard_of_person(me, one) for one in people} == {0}
    entries = [Entry(one, ISSUE, "accident", china_day(now), 100_000) for one in people]
    made = timed(
        "1 depositor: blind, share, seal", lambda: [make_deposit(me, one, random(16), random) for one in entries]
    )
    signed = timed("1 depositor: sign", lambda: sign_batch(me, made, now))
    evaluated = timed("2 service: evaluate, prove", lambda: accept_batch(alliance.service, signed, now, random))
    chosen = preferred_choice(random(16), dict.fromkeys(evaluated.slots, 0.0))
    assert chosen is not None
    order = RangeOrder(nonce=random(16), chosen=chosen, issued_at=int(now))
    names, answers = manifest.committee(0).slots, {}
    for slot in evaluated.slots:
        party, store = alliance.parties[names[slot]], alliance.stores[names[slot]]
        sent = timed("messages", lambda slot=slot: encode(prepare_call(evaluated, slot, order)))
        call = timed("messages", lambda sent=sent: decode(PrepareCall, sent))
        accepted = timed(
            "3 holders: verify, unblind, open",
            lambda party=party, call=call: accept_prepare(party, call, alliance.key, now),
        )
        prepared = store.prepare(accepted.proposed, now, accepted.attempt())
        step = "3 judges: confirm, garble" if slot in chosen else "3 other holders: confirm"
        answer = timed(step, lambda: confirm(party, accepted, prepared))  # noqa: B023  called at once
        told = timed("messages", lambda answer=answer: encode(answer))
        answers[slot] = timed("messages", lambda told=told: decode(PrepareAnswer, told))
    proofs = timed("4 service: open, compare", lambda: opened_proofs(manifest, evaluated, order, answers))
    assert proofs is not None
    tick = tick_at(now, manifest.terms.tick_seconds)
    decisions = timed("4 service: open, compare", lambda: decide(manifest, evaluated, answers, proofs, tick))
    for slot in evaluated.slots:
        call = commit_call(evaluated, decisions, slot)
        assert call is not None
        party, store = alliance.parties[names[slot]], alliance.stores[names[slot]]
        commits = accept_commit(party, call, now)
        kept = timed("5 holders: stamp, receipt", lambda: store.commit(call.depositor, 0, commits))  # noqa: B023  called at once
        ids = [commit.deposit_id for commit in commits]
        timed("5 holders: stamp, receipt", lambda: give_receipts(party, me.id, 0, ids, kept))  # noqa: B023  called at once
    return seconds


if __name__ == "__main__":
    sys.exit(main())
