"""What the demonstration shows: plain lines of at most 110 columns, in colour where the terminal has it."""

import os
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import zip_longest

from protocol.sharing import Label

WIDTH = 110
_LEFT = 74
_GAP = "  |  "
_RESET = "\x1b[0m"
_COLOURS = {"exceeds": "\x1b[1;31m", "within": "\x1b[32m", "indeterminate": "\x1b[33m", "heading": "\x1b[1m"}
_RESIDENT_ID_LENGTH = 18


@dataclass(frozen=True)
class Asked:
    """One check and what came of it. `expected` is what the demonstration knows to be right."""

    applicant: tuple[str, str]
    requester: str
    proposed: int
    verdict: str
    reason: str | None
    expected: str
    milliseconds: float
    story: str

    @property
    def right(self) -> bool:
        """Tell whether the verdict is the one that it should be."""
        return self.verdict == self.expected


@dataclass(frozen=True)
class Accumulation:
    """The motivating case as only the demonstration can see it: what each insurer saw alone, and the sum."""

    insurers: int
    days: int
    largest: int
    total: int
    limit: int


@dataclass(frozen=True)
class CustodianRow:
    """What a custodian's database holds of the person: its own index of him, and one deposit under it."""

    token: bytes
    deposits: int
    depositors: int
    day: date
    depositor: str
    shares: bytes
    lacking: Label


@dataclass(frozen=True)
class Seen:
    """What the parties to one check saw, as captured: the service's side, one custodian's, the requester's."""

    check_id: bytes
    requester: str
    rule: str
    shard: int
    day: date
    blinded: bytes
    envelopes: Sequence[bytes]
    evaluated: bytes
    tag: bytes
    answered: int
    custodian: str
    slot: int
    row: CustodianRow


_SHOWN = 20


@dataclass(frozen=True)
class Search:
    """What was looked for in everything that was captured, and what of it turned up there and in the files."""

    parties: int
    exchanges: int
    size: int
    identities: int
    amounts: int
    found: Sequence[str]
    """The places where it did, and must not."""
    found_in_files: int


def show(lines: Iterable[str] = ("",)) -> None:
    """Write lines to standard output at once."""
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def money(fen: int) -> str:
    """Return yuan with grouping: 3,000,000.00."""
    return f"{fen // 100:,}.{fen % 100:02d}"


def mask(identity: tuple[str, str]) -> str:
    """Return a document number with its middle hidden; of a resident id the region and the last four stay."""
    _, number = identity
    head, tail = (6, 4) if len(number) == _RESIDENT_ID_LENGTH else (2, 2)
    return number[:head] + "*" * (len(number) - head - tail) + number[-tail:]


def shorten(data: bytes) -> str:
    """Return the first and the last bytes in hexadecimal."""
    return f"{data[:6].hex()}..{data[-2:].hex()}"


def heading(text: str) -> list[str]:
    """Return a heading with a blank line before it."""
    return ["", _coloured("heading", text)]


def table_head() -> list[str]:
    """Return the head of the table of checks."""
    head = _columns("#", "applicant", "asked by", "cover proposed", "verdict", "ms", "what only this demo knows")
    return [head, "-" * WIDTH]


def table_row(number: int, asked: Asked) -> list[str]:
    """Return the row of one check; a second line says what is wrong, if anything is."""
    verdict = "EXCEEDS" if asked.verdict == "exceeds" else asked.verdict
    row = _columns(
        str(number),
        mask(asked.applicant),
        asked.requester,
        money(asked.proposed),
        verdict,
        f"{asked.milliseconds:.0f}",
        asked.story,
    )
    lines = [row.replace(f" {verdict} ", f" {_coloured(asked.verdict, verdict)} ", 1)]
    if asked.reason is not None:
        lines.append(f"    no answer: {asked.reason}")
    if not asked.right:
        lines.append(_coloured("exceeds", f"    WRONG: it should have been: {asked.expected}"))
    return lines


def _columns(*cells: str) -> str:
    number, applicant, requester, proposed, verdict, milliseconds, story = cells
    return (
        f"{number:>2}  {applicant:<18}  {requester:<10}  {proposed:>14}  {verdict:<13}  {milliseconds:>5}  {story}"
    ).rstrip()


def story_lines(asked: Asked, accumulation: Accumulation) -> list[str]:
    """Tell the motivating case: what each insurer alone saw, and what the one bit says."""
    bit = {"exceeds": "1: with this cover he EXCEEDS", "within": "0: with this cover he stays WITHIN"}
    text = (
        f"The last applicant has {accumulation.insurers} insurers. Alone, each saw one cover of at most "
        f"{money(accumulation.largest)}, unremarkable against the limit of {money(accumulation.limit)}. Together, in "
        f"{accumulation.days} days, they are {money(accumulation.total)}. {asked.requester}, which insures him not "
        f"at all, asked about {money(asked.proposed)} more and got one bit, "
        f"{bit.get(asked.verdict, '-: there was no answer about')} the limit. It learned neither the sum nor who the "
        f"others are."
    )
    return ["", *textwrap.wrap(text, WIDTH)]


def seen_lines(seen: Seen, asked: Asked) -> list[str]:
    """Return what each party saw beside what nobody saw."""
    left = [
        f"WHAT EACH PARTY SAW of check {shorten(seen.check_id)}",
        "",
        *_party(
            f"{seen.requester}, the requester",
            "its own applicant and its own proposal",
            f"tag     {shorten(seen.tag)}  one of the two that it can tell apart",
            f"the bit {asked.verdict}",
        ),
        *_party(
            "the lookup service",
            f"asked by {seen.requester}, {seen.rule}, shard {seen.shard}, day {seen.day}",
            f"B       {shorten(seen.blinded)}  32 bytes: the applicant, blinded afresh",
            f"sealed  {len(seen.envelopes)} envelopes of {_sizes(seen.envelopes)} bytes, not for it to open",
            f"C       {shorten(seen.evaluated)}  what it made of B with its key",
            f"tag     {shorten(seen.tag)}  what it returned, and cannot read",
        ),
        *_party(
            f"{seen.custodian}, one of the {seen.answered} custodians that answered",
            f"asked by {seen.requester}, {seen.rule}, day {seen.day}",
            "sealed  1 envelope: what unblinds C; shares of the proposal, one short",
            f"T       {shorten(seen.row.token)}  its own pseudonym for the person",
            f"under T {seen.row.deposits} deposits of {seen.row.depositors} members, with product and day;",
            f"        one of them, on {seen.row.day}, of {seen.row.depositor}:",
            f"shares  {shorten(seen.row.shares)}  {len(seen.row.shares)} bytes, encrypted at rest;",
            f"        without share {{{seen.row.lacking[0]},{seen.row.lacking[1]}}}, which slot {seen.slot} never got,"
            " any amount fits",
        ),
    ]
    nobody = (
        f"Who the applicant is: no one but {seen.requester} learned it.",
        "Any amount of a cover, or the total: no one at all. The proposal: only the requester.",
        "Who else insures him: the requester saw no insurers; the custodians saw insurers of a pseudonym, and no name.",
        "The verdict: only the requester.",
    )
    right = ["WHAT NOBODY SAW", ""]
    for text in nobody:
        right += [*textwrap.wrap(text, WIDTH - _LEFT - len(_GAP)), ""]
    lines = [f"{ours:<{_LEFT}}{_GAP}{theirs}".rstrip() for ours, theirs in zip_longest(left, right, fillvalue="")]
    note = "T was found in the custodian's database by insurers and days, which only this demo knows of the applicant."
    return ["", _coloured("heading", lines[0]), *lines[1:], "", *textwrap.wrap(note, WIDTH)]


def _party(name: str, *facts: str) -> list[str]:
    return [name, *(f"  {fact}" for fact in facts), ""]


def _sizes(envelopes: Sequence[bytes]) -> str:
    sizes = sorted({len(envelope) for envelope in envelopes})
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"


def search_lines(search: Search) -> list[str]:
    """Say what the search of all captured bytes came to."""
    found = "None occurs." if not search.found else f"SOME OCCUR, and must not, in {len(search.found)} places."
    text = (
        f"Searched: all {search.size:,} bytes that {search.parties} parties received or answered in "
        f"{search.exchanges:,} exchanges, for {search.identities:,} spellings of identities and policy numbers and "
        f"{search.amounts:,} of amounts, as text and, in every field, in binary. {found} (The insurers' own files, "
        f"searched alike, hold {search.found_in_files:,} of them.)"
    )
    lines = [*textwrap.wrap(text, WIDTH), *(f"  {place}" for place in search.found[:_SHOWN])]
    return ["", *(_coloured("exceeds" if search.found else "within", line) for line in lines)]


def keep_lines(service_url: str, agents: Sequence[tuple[str, str]], curl: str) -> list[str]:
    """Say where everything is, and how to ask a check by hand."""
    return [
        "",
        f"lookup service  {service_url}",
        *(f"{name}      {url}" for name, url in agents),
        "",
        "Ask again about the last applicant (one line):",
        "",
        curl,
        "",
        "Everything runs until Ctrl-C.",
    ]


def _coloured(colour: str, text: str) -> str:
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") == "dumb"
    return text if plain else f"{_COLOURS[colour]}{text}{_RESET}"
