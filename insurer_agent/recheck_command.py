"""The command `insurer-agent recheck`."""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transport.settings import SettingsError

if TYPE_CHECKING:
    from insurer_agent.agent import Agent
    from insurer_agent.recheck import Tally
    from insurer_agent.store.rechecks import Extent
    from protocol.manifest import Rule

# As in cli.py, what a command needs is imported when it runs.

STOPPED = 1
SOME_EXCEED = 3
SOME_INDETERMINATE = 4
"""The exit status where somebody has no answer, whether or not others exceed: the list is not the whole truth."""


def add_recheck_command(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command; `command` takes its name, what it runs and its help."""
    rechecking = command(
        "recheck",
        _recheck,
        "Check all insured persons with a policy in force in a rule's window again, and list those that now exceed."
        " Status 0: all were answered, none exceeds; 3: some exceed; 4: some have no answer; 1: stopped, no list.",
    )
    rechecking.add_argument("--rule", action="append", metavar="ID", help="ask under this rule alone; may be repeated")
    rechecking.add_argument(
        "--out", type=Path, metavar="FILE", help="the list, which holds personal data (recheck-DAY.csv in the state)"
    )
    rechecking.add_argument("--json", action="store_true", help="write the list, and say the summary, as JSON")
    rechecking.add_argument("--force", action="store_true", help="overwrite the list, once the new one is whole")


def _recheck(args: argparse.Namespace) -> int:
    from insurer_agent import background
    from insurer_agent.agent import Agent
    from insurer_agent.config import Settings
    from insurer_agent.store.server import database_server
    from insurer_agent.store.vault import VaultError

    def stop(_number: int, _frame: object) -> None:
        sys.exit(STOPPED)  # through the blocks that take an unfinished list away

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with database_server(Settings.load(args.state)):
        agent = Agent.open(args.state, connections=4)
        try:
            background.follow(agent)  # a run may take all night
            return _run(agent, args)
        except VaultError as error:
            raise SettingsError(str(error)) from None
        finally:
            agent.database.close()


def _run(agent: "Agent", args: argparse.Namespace) -> int:
    from insurer_agent.import_report import Report
    from insurer_agent.recheck import Pace, Recheck
    from insurer_agent.recheck_list import RecheckList
    from insurer_agent.store.locks import Lock
    from protocol.manifest import china_day, day_of
    from transport.problems import Problem

    today, rules = china_day(time.time()), _rules(agent, args.rule)
    path = args.out or args.state / f"recheck-{day_of(today).isoformat()}.{'json' if args.json else 'csv'}"
    report = Report(sys.stderr)
    with agent.database.lease(Lock.RECHECK) as held:
        if not held():
            raise Problem(409, "recheck-under-way", "another recheck of this agent is under way")
        with RecheckList(path, as_json=args.json, force=args.force) as listed:
            spool = agent.spool()
            try:
                extent = spool.collect(rules, today)
                report.line(f"recheck: {extent.persons:,} persons to ask about, {extent.lanes:,} questions")
                report.begin()
                run = Recheck(
                    agent.requester,
                    spool,
                    listed,
                    tell=lambda done: report.progress(
                        "recheck", done, done / extent.lanes if extent.lanes else None, things="answers"
                    ),
                    held=held,
                    pace=Pace(),
                )
                tally = run.run(rules)
            finally:
                spool.forget()
            listed.finish()
        unmade = agent.outbox.backlog().unmade
    report.line(f"recheck: the list is {path}")
    summary = _summary(rules, extent, tally, today) | {"deposits_unmade": unmade}
    print(json.dumps(summary, indent=1) if args.json else _text(summary))
    if tally.indeterminate:
        return SOME_INDETERMINATE
    return SOME_EXCEED if tally.exceeds else 0


def _rules(agent: "Agent", names: list[str] | None) -> "list[Rule]":
    """Return the rules to ask under: those named, else all in force that allow rechecks."""
    in_force = {rule.id: rule for rule in agent.requester.rules()}
    if names is None:
        found = [rule for rule in in_force.values() if rule.recheck_budget]
        if not found:
            raise SettingsError("no rule in force has a recheck_budget")
        return found
    unknown = [name for name in names if name not in in_force]
    if unknown:
        raise SettingsError(f"no rule {unknown[0]} is in force; there are {', '.join(in_force)}")
    rules = [in_force[name] for name in dict.fromkeys(names)]
    for rule in rules:
        rule.require_recheck()
    return rules


def _summary(rules: "list[Rule]", extent: "Extent", tally: "Tally", today: int) -> dict[str, Any]:
    from protocol.manifest import day_of

    current = tally.completeness
    return {
        "as_of": day_of(today).isoformat(),
        "persons": extent.persons,
        "rules": {
            rule.id: {
                "version": rule.version,
                "exceeds": tally.exceeds[rule.id],
                "within": tally.within[rule.id],
                "indeterminate": dict(sorted(tally.indeterminate.get(rule.id, {}).items())),
            }
            for rule in rules
        },
        "completeness": None if current is None else {"members": current.members, "current": current.current},
    }


def _text(summary: dict[str, Any]) -> str:
    lines = [f"{summary['persons']} persons as of {summary['as_of']}"]
    for name, rule in summary["rules"].items():
        reasons = ", ".join(f"{count} {reason}" for reason, count in rule["indeterminate"].items())
        left = sum(rule["indeterminate"].values())
        lines.append(
            f"{name}: {rule['exceeds']} exceed, {rule['within']} within, {left} indeterminate"
            + (f" ({reasons})" if reasons else "")
        )
    if summary["completeness"] is not None:
        lines.append(
            "completeness: {current} of {members} members current at the least".format(**summary["completeness"])
        )
    if summary["deposits_unmade"]:
        lines.append(f"{summary['deposits_unmade']} of this member's own deposits are not made yet: totals lack them")
    return "\n".join(lines)
