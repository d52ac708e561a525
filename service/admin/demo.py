"""The demonstration: a whole alliance of real processes, asked a dozen checks, and then turned inside out.

1. Samples of made-up people are written, one file per insurer.
2. `alliance local` starts an agent for each insurer and the lookup service; the agents deposit their policies.
3. Several insurers ask checks over REST, as their underwriting systems would.
4. For one check, what each party saw is taken from the messages it received, and from one custodian's database.
5. Everything that any party received is searched for every identity and every amount of the samples.
"""

import base64
import contextlib
import fcntl
import http.client
import json
import os
import select
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import psycopg

from protocol.encoding import decode
from protocol.errors import ProtocolError
from protocol.manifest import china_day
from protocol.messages import CheckCall, CheckOutcome, CheckRequest, envelope_hash
from protocol.sharing import label
from service.admin import demo_view as view
from service.admin.demo_search import Exchange, search_all
from service.admin.samples import ACCUMULATOR, LIMIT, MILLION, SamplePerson, Samples, make_samples

RULE = "accident-30d"
MARKER = ".demonstration"
PEOPLE = 1000
"""Ordinary people; with the cases they have about 2,600 policies."""
_SEED = 20_261_123
_LOCAL = (sys.executable, "-m", "service.admin.cli", "local")
_READY_SECONDS = 240
_STOP_SECONDS = 30
_CHECK_SECONDS = 10
_PROPOSED = 3 * MILLION
_ASKS = (
    ("newcomer", _PROPOSED, "no cover anywhere"),
    (None, _PROPOSED, "a few covers, like most people"),
    ("room-for-3-million", _PROPOSED, "47 million: now just at the limit"),
    ("room-for-3-million", _PROPOSED + 1, "the same person, one fen more"),
    ("two-generations-of-id", _PROPOSED, "49 million, under two forms of id"),
    ("passport", _PROPOSED, "49 million, under four spellings"),
    ("first-day-of-window", _PROPOSED, "49 million, 29 days ago: counts"),
    ("day-before-window", _PROPOSED, "49 million, 30 days ago: does not"),
    ("future-dated", _PROPOSED, "49 million, half of it in 20 days"),
    ("cancelled", _PROPOSED, "54 million, 45 of them cancelled"),
    ("cancelled-late", _PROPOSED, "49 million; older covers cancelled"),
    ("amended-down", _PROPOSED, "60 million, amended to 12"),
    ("other-products", _PROPOSED, "120 million of group and life"),
)


class DemoError(Exception):
    """The demonstration cannot go on; the text says why."""


def run_demo(*, root: Path, keep: bool, members: int = 25) -> int:
    """Run the demonstration below `root`, which it owns; return the exit status: 0 if all was as it should be."""
    try:
        with _interruptible(), _own_directory(root):
            return _demonstrate(root.absolute(), members, keep=keep)
    except (DemoError, OSError, http.client.HTTPException) as error:
        sys.stderr.write(f"demo: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("demo: interrupted; everything is stopped\n")
        return 130


def _demonstrate(root: Path, members: int, *, keep: bool) -> int:
    begin = time.monotonic()
    today = date.fromordinal(china_day(time.time()))
    samples = make_samples(root / "samples", members=members, people=PEOPLE, today=today, seed=_SEED)
    policies, people = f"{len(samples.policies):,} policies", f"{len(samples.people):,} people"
    view.show([f"{members} insurers hold {policies} of {people}, all made up. Starting their agents:"])
    state = root / "state"
    with _alliance(root / "samples", state, members) as process:
        alliance = _Alliance.of(state)
        view.show(view.heading(f"Checks under {RULE}: do covers of 30 days and the one proposed exceed 50,000,000.00?"))
        view.show(view.table_head())
        asked, check_id = _ask_all(alliance, samples)
        accumulation = _accumulation(samples)
        view.show(view.story_lines(asked[-1], accumulation))
        exchanges = _captured(state / "capture", check_id)
        view.show(view.seen_lines(_seen(exchanges, check_id, state, samples), asked[-1]))
        search = search_all(exchanges, samples, root / "samples", {check.proposed for check in asked})
        view.show(view.search_lines(search))
        good = all(check.right for check in asked) and not search.found and search.found_in_files > 0
        view.show(["", f"Done in {time.monotonic() - begin:.0f} s."])
        if keep:
            _stay(alliance, samples, process)
    return 0 if good else 1


# --- 2. the alliance -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Agent:
    id: str
    url: str
    api_key: str = field(repr=False)


@dataclass(frozen=True)
class _Alliance:
    service_url: str
    ca_file: str
    agents: Sequence[_Agent]

    @classmethod
    def of(cls, state: Path) -> "_Alliance":
        content = json.loads((state / "local.json").read_text(encoding="utf-8"))
        agents = [_Agent(entry["id"], entry["url"], entry["api_key"]) for entry in content["members"]]
        return cls(content["service_url"], content["ca_file"], agents)


@contextlib.contextmanager
def _alliance(policies: Path, state: Path, members: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the processes, wait until they are ready, and stop them in the end, whatever happened."""
    command = [*_LOCAL, "--members", str(members), "--policies", str(policies), "--state", str(state), "--capture"]
    # In a process group of its own, so that Ctrl-C in the terminal is ours to pass on, once.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, process_group=0)  # noqa: S603  our own command
    try:
        _await_ready(process)
        yield process
    finally:
        _stop(process)


def _await_ready(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    deadline = time.monotonic() + _READY_SECONDS
    printed = b""
    while b"ready" not in printed.splitlines():
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([process.stdout], [], [], left)[0]:
            raise DemoError(f"the alliance was not ready after {_READY_SECONDS} s")
        piece = os.read(process.stdout.fileno(), 4096)
        if not piece:
            raise DemoError(f"the alliance ended before it was ready, with status {process.wait(_STOP_SECONDS)}")
        printed += piece


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the group that `process_group=0` made for it
            process.wait()
            raise DemoError(f"the alliance did not stop within {_STOP_SECONDS} s and was killed") from None
    if process.stdout is not None:
        process.stdout.close()


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Have SIGTERM and a closed terminal end the demonstration as Ctrl-C does, so that no process stays behind."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.default_int_handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _own_directory(root: Path) -> Iterator[None]:
    """Empty and hold a directory that an earlier demonstration made, or make it; refuse any other."""
    marker = root / MARKER
    if root.is_symlink() or (root.exists() and not marker.is_file()):
        raise DemoError(f"{root} exists and was not made by this demonstration; name another directory")
    root.mkdir(parents=True, exist_ok=True)
    with marker.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demonstration is running in {root}") from None
        for entry in root.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry != marker:
                entry.unlink()
        yield


# --- 3. the checks -------------------------------------------------------------------------------------------------


def _ask_all(alliance: _Alliance, samples: Samples) -> tuple[list[view.Asked], bytes]:
    """Ask all checks, show each as it is answered, and return them with the last one's id."""
    accumulation = _accumulation(samples)
    last = f"{accumulation.total / MILLION:.1f} million from {accumulation.insurers} insurers"
    asked, context = [], ssl.create_default_context(cafile=alliance.ca_file)
    for number, (case, proposed, story) in enumerate((*_ASKS, (ACCUMULATOR, _PROPOSED, last)), 1):
        person = _ordinary(samples) if case is None else samples.case(case)
        insured_by = {policy.insurer for policy in samples.policies_of(person)}
        strangers = [agent for agent in alliance.agents if agent.id not in insured_by] or alliance.agents
        agent = strangers[number % len(strangers)]
        milliseconds, answer = _ask(agent, context, person, proposed, f"UW-{number}")
        expected = "exceeds" if (person.total or 0) + proposed > LIMIT else "within"
        verdict, reason = answer["verdict"], answer["reason"]
        asked.append(view.Asked(person.identity, agent.id, proposed, verdict, reason, expected, milliseconds, story))
        view.show(view.table_row(number, asked[-1]))
    return asked, bytes.fromhex(answer["check_id"])


def _ordinary(samples: Samples) -> SamplePerson:
    return next(
        person
        for person in samples.people
        if person.case is None and len({policy.insurer for policy in samples.policies_of(person)}) == 3  # noqa: PLR2004
    )


def _body(person: SamplePerson, proposed: int, reference: str) -> str:
    document_type, number = person.identity
    subject = {"document_type": document_type, "document_number": number}
    amount = f"{proposed // 100}.{proposed % 100:02d}"
    return json.dumps({"subject": subject, "rule": RULE, "proposed_amount": amount, "reference": reference})


def _ask(
    agent: _Agent, context: ssl.SSLContext, person: SamplePerson, proposed: int, reference: str
) -> tuple[float, dict[str, Any]]:
    """Ask one check as an underwriting system does; return how long it took in ms, and the answer."""
    headers = {"Authorization": f"Bearer {agent.api_key}", "Content-Type": "application/json"}
    body = _body(person, proposed, reference)
    connection = http.client.HTTPSConnection(urlsplit(agent.url).netloc, timeout=_CHECK_SECONDS, context=context)
    with contextlib.closing(connection):
        connection.connect()
        begin = time.perf_counter()
        connection.request("POST", "/v1/checks", body, headers)
        response = connection.getresponse()
        content = response.read()
        milliseconds = (time.perf_counter() - begin) * 1000
    if response.status != http.client.OK:
        problem = content.decode(errors="replace")
        raise DemoError(f"{agent.id} answered a check with status {response.status}: {problem}")
    answer: dict[str, Any] = json.loads(content)
    return milliseconds, answer


def _accumulation(samples: Samples) -> view.Accumulation:
    policies = samples.policies_of(samples.case(ACCUMULATOR))
    days = [policy.day for policy in policies]
    return view.Accumulation(
        insurers=len({policy.insurer for policy in policies}),
        days=(max(days) - min(days)).days + 1,
        largest=max(policy.fen for policy in policies),
        total=sum(policy.fen for policy in policies),
        limit=LIMIT,
    )


def _stay(alliance: _Alliance, samples: Samples, process: subprocess.Popen[bytes]) -> None:
    agent = alliance.agents[-1]
    curl = (
        f"curl -sS --noproxy '*' --cacert {alliance.ca_file} {agent.url}/v1/checks"
        f" -H 'Authorization: Bearer {agent.api_key}'"
        f" -H 'Content-Type: application/json' -d '{_body(samples.case(ACCUMULATOR), _PROPOSED, 'UW-BY-HAND')}'"
    )
    view.show(view.keep_lines(alliance.service_url, [(agent.id, agent.url) for agent in alliance.agents], curl))
    with contextlib.suppress(KeyboardInterrupt):
        raise DemoError(f"the alliance ended by itself, with status {process.wait()}")


# --- 4. what each party saw ----------------------------------------------------------------------------------------


M = TypeVar("M")


def _captured(directory: Path, check_id: bytes) -> list[Exchange]:
    """Return all that was captured, once the check with this id is in it."""
    for _ in range(50):
        exchanges = [exchange for file in sorted(directory.glob("*.jsonl")) for exchange in _exchanges(file)]
        answers = _messages(exchanges, CheckOutcome, lambda exchange: exchange.response)
        if any(outcome.check_id == check_id for _, outcome in answers):
            return exchanges
        time.sleep(0.1)
    raise DemoError("the last check is not among the captured messages")


def _exchanges(file: Path) -> Iterator[Exchange]:
    for line in file.read_text(encoding="ascii").splitlines(keepends=True):
        if line.endswith("\n"):  # else it is being written
            entry = json.loads(line)
            yield Exchange(file.stem, base64.b64decode(entry["request"]), base64.b64decode(entry["response"]))


def _messages(
    exchanges: Iterable[Exchange], kind: type[M], side: Callable[[Exchange], bytes]
) -> Iterator[tuple[Exchange, M]]:
    """Yield the exchanges on one side of which there is a message of a kind."""
    for exchange in exchanges:
        with contextlib.suppress(ProtocolError):
            yield exchange, decode(kind, side(exchange))


def _seen(exchanges: list[Exchange], check_id: bytes, state: Path, samples: Samples) -> view.Seen:
    """Put together what the parties to one check saw."""
    request, exchange = next(
        (message, exchange)
        for exchange, message in _messages(exchanges, CheckRequest, lambda exchange: exchange.request)
        if message.signed.statement.check_id == check_id
    )
    outcome = decode(CheckOutcome, exchange.response)
    calls = [
        (exchange.party, call)
        for exchange, call in _messages(exchanges, CheckCall, lambda exchange: exchange.request)
        if call.signed.statement.check_id == check_id and call.attempt == outcome.attempt
    ]
    tag = outcome.tags[0] if outcome.tags else None
    if tag is None or not calls:
        raise DemoError(f"the last check was not answered: {outcome.void}")
    statement, (custodian, call) = request.signed.statement, calls[0]
    slot = next(entry.slot for entry in statement.envelopes if entry.hash == envelope_hash(call.envelope))
    return view.Seen(
        check_id=check_id,
        requester=statement.requester,
        rule=f"rule {statement.lanes[0].rule_id} v{statement.lanes[0].rule_version}",
        shard=statement.shard,
        day=date.fromordinal(statement.as_of),
        blinded=statement.persons[0],
        envelopes=request.envelopes,
        evaluated=call.evaluated[0],
        tag=tag,
        answered=len(calls),
        custodian=custodian,
        slot=slot,
        row=_custodian_row(state, custodian, statement.shard, slot, samples),
    )


def _custodian_row(state: Path, custodian: str, shard: int, slot: int, samples: Samples) -> view.CustodianRow:
    """Find the accumulator in a custodian's database: by who insured him and when, since nothing else is in clear."""
    policies = samples.policies_of(samples.case(ACCUMULATOR))
    his = {(policy.insurer, policy.product, policy.day) for policy in policies}
    settings = tomllib.loads((state / "members" / custodian / "config.toml").read_text(encoding="utf-8"))
    query = (
        "SELECT token, depositor, product, day, excluded, shares FROM custody_row"
        " WHERE shard = %s ORDER BY day, depositor"
    )
    persons: dict[bytes, list[tuple[Any, ...]]] = defaultdict(list)
    try:
        with psycopg.connect(settings["database"]) as connection:
            for token, *row in connection.execute(query, (shard,)):
                persons[bytes(token)].append(tuple(row))
    except psycopg.Error as error:
        raise DemoError(f"the database of {custodian} cannot be read: {type(error).__name__}") from None
    fitting = [token for token, rows in persons.items() if {(row[0], row[1], row[2]) for row in rows} <= his]
    if not fitting:
        raise DemoError(f"the database of {custodian} has no deposits of the last applicant")
    token = max(fitting, key=lambda token: len(persons[token]))
    depositor, _, day, excluded, shares = persons[token][0]
    depositors = len({row[0] for row in persons[token]})
    lacking = label(excluded, slot)
    return view.CustodianRow(token, len(persons[token]), depositors, day, depositor, bytes(shares), lacking)
