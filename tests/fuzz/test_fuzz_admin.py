"""The service's endpoints for admins under junk, and proposals under any sequence of acts: no manifest but by two.

The attacker has an admin's API key, and one admin's own signing key.
"""

import base64
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuzzing import KNOWN_CODES, Tally, bent, bent_bytes, chance, fuzzed, seeds
from governing import ADMINS, Board, Told, first_terms, following, id_of, signature_of, with_limit
from hypothesis import given
from hypothesis import strategies as st
from strategies import messages

from protocol.encoding import decode, encode
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, Terms

pytest_plugins = ("fuzzing",)

HTTP = {"bad-request", "not-found", "method-not-allowed", "request-entity-too-large", "unsupported-media-type"}
BODIES = {"not-json", "invalid-request", "not-base64", "malformed"}
STATES = {"already-published", "proposal-withdrawn", "stale-proposal", "proposal-expired", "conflicting-proposal"}
SIGNATURES = {"unknown-admin", "bad-signature", "already-signed", "under-signed"}
TERMS = {"serial-skipped", "issued-ahead", "stale-proposal", "proposal-expired", "too-many-proposals"}
CODES = KNOWN_CODES | HTTP | BODIES | STATES | SIGNATURES | TERMS | {"unknown-proposal"}

SCHEMES = ["Bearer ", "bearer ", ""]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    board = Board(tmp_path_factory.mktemp("fuzz") / "service")
    yield board
    assert board.newest().terms == board.terms
    assert {file.name for file in board.state.iterdir()} <= {
        *("keys.json", "manifest.bin", "admins.json", "config.toml", "directory", "manifests", "proposals"),
        *("api-keys.json", ".api-keys.lock", "admin-audit.log", ".admin-audit.lock"),
    }


def refused(tally: Tally, told: Told) -> None:
    tally.inputs += 1
    if told.status >= 500:
        tally.crashed += 1
        raise AssertionError(told)
    if told.status < 400:
        tally.accepts(right=False)
    assert told.body["hint"], told.body
    tally.refuses(told.code, CODES)


def test_no_body_but_a_good_one_is_taken_anywhere(board: Board, tally: Tally) -> None:
    terms = with_limit(board.terms)
    board.propose(terms)
    board.sign(terms, "ann")  # one of two
    paths = [f"/v1/admin/proposals/{id_of(terms)}/signatures", "/v1/admin/proposals"]
    names = st.sampled_from(["terms", "comment", "admin", "signature"])

    @fuzzed(8)
    @given(st.one_of(json_values, st.dictionaries(names, json_values, max_size=4)), st.binary(max_size=60))
    def check(value: Any, junk: bytes) -> None:  # noqa: ANN401  any JSON
        for path in paths:
            refused(tally, board.ask("POST", path, json.dumps(value).encode(), content_type="application/json"))
            refused(tally, board.ask("POST", path, junk, content_type="application/json"))

    check()
    refused(tally, board.publish(terms))
    assert board.withdraw(terms).status == 200


def test_bent_terms_are_refused_or_are_consistent_terms_that_may_follow(board: Board, tally: Tally) -> None:
    good = with_limit(board.terms)

    def propose(data: bytes) -> None:
        told = board.ask("POST", "/v1/admin/proposals", {"terms": base64.b64encode(data).decode()})
        if told.status != 201:
            refused(tally, told)
            return
        tally.inputs += 1
        terms = decode(Terms, data)
        Manifest.of(terms)
        tally.accepts(right=encode(terms) == data and terms.serial == board.terms.serial + 1)
        assert board.withdraw(terms).status in {200, 409}

    @fuzzed(6)
    @given(bent(good, names={"insurer-01", "accident"}) | messages(Terms), seeds)
    def check(terms: Terms, seed: int) -> None:
        propose(encode(terms))
        propose(bent_bytes(chance(seed), encode(good), encode(terms)))

    check()
    assert tally.accepted > 0
    assert tally.refused > tally.accepted


def test_no_address_reaches_anything_but_a_proposal(board: Board, tally: Tally) -> None:
    @fuzzed(8)
    @given(st.text(st.characters(codec="utf-8", exclude_characters="?#"), min_size=1, max_size=20), st.booleans())
    def check(text: str, dotted: bool) -> None:  # noqa: FBT001  hypothesis passes it by name
        name = f"../{text}" if dotted else text
        for method, suffix in (("GET", ""), ("POST", "/publish"), ("POST", "/withdraw"), ("POST", "/signatures")):
            path = f"/v1/admin/proposals/{name}{suffix}"
            told = board.ask(method, "/", environ_overrides={"PATH_INFO": path.encode().decode("latin-1")})
            refused(tally, told)

    check()


def test_no_header_is_a_key_that_is_none(board: Board, tally: Tally) -> None:
    @fuzzed(8)
    @given(
        st.text(st.characters(codec="latin-1", exclude_characters="\r\n"), max_size=40),
        st.sampled_from(["Bearer ", ""]),
    )
    def check(text: str, scheme: str) -> None:
        answer = board.app.test_client().get("/v1/admin/rules", headers={"Authorization": scheme + text})
        tally.inputs += 1
        assert answer.status_code == 401
        tally.refuses(answer.get_json(force=True)["code"], {"unauthorized"})

    check()


ACTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["propose", "sign", "sign", "sign", "forge", "steal", "publish", "publish", "withdraw", "propose anew"]
        ),
        st.integers(0, 1),
        st.sampled_from(sorted(ADMINS)),
    ),
    min_size=10,
    max_size=40,
)


class Model:
    """What there should be: the newest manifest, who has signed what was proposed, and what was withdrawn."""

    def __init__(self, newest: Terms) -> None:
        self.newest = newest
        self.signers: dict[str, set[str]] = {}
        self.withdrawn: set[str] = set()

    def takes(self, act: str, terms: Terms, admin: str, told: Told) -> bool:
        """Tell whether an act had the right answer, and take it in."""
        name, done = id_of(terms), told.status < 300
        known = name in self.signers
        open_now = terms.serial == self.newest.serial + 1 and name not in self.withdrawn
        match act:
            case "propose":
                right = done == open_now
                self.signers.setdefault(name, set()) if done else None
            case "sign":
                right = done == (known and open_now)
                self.signers.setdefault(name, set()).add(admin) if done else None
            case "publish":
                right = done == (known and (terms == self.newest or (open_now and len(self.signers[name]) >= 2)))
                self.newest = terms if done else self.newest
            case "withdraw":
                right = done == (known and (open_now or (name in self.withdrawn and terms != self.newest)))
                self.withdrawn |= {name} if done else set()
            case _:  # forged, or another's
                right = not done
        return right


def test_whatever_is_done_in_whatever_order_a_manifest_is_what_two_admins_signed(tmp_path: Path, tally: Tally) -> None:
    numbers, outcomes = iter(range(10**6)), Counter[tuple[str, int]]()

    @fuzzed(0.8)
    @given(ACTS)
    def check(acts: list[tuple[str, int, str]]) -> None:
        board = Board(tmp_path / str(next(numbers)), replace(first_terms(), serial=7))
        model, made = Model(board.terms), dict[int, Terms]()
        for act, number, admin in acts:
            fresh = act == "propose anew" or number not in made
            if fresh:  # in the place of what had the number
                made[number] = following(model.newest, valid_until=int(time.time()) + 10**6 + len(model.signers))
            for one in ["propose"] * fresh + [act] * (act != "propose anew"):
                tally.inputs += 1
                told = apply(board, one, made[number], admin)
                tally.accepts(right=model.takes(one, made[number], admin, told))
                assert board.newest().terms == model.newest
                outcomes[one, told.status] += 1

    check()
    assert {(act, 200) for act in ("sign", "publish", "withdraw")} <= set(outcomes)
    assert {(act, 409) for act in ("propose", "sign", "publish", "withdraw")} <= set(outcomes)


def apply(board: Board, act: str, terms: Terms, admin: str) -> Told:
    path = f"/v1/admin/proposals/{id_of(terms)}"
    other = next(name for name in sorted(ADMINS) if name != admin)
    match act:
        case "propose":
            return board.propose(terms)
        case "sign":
            return board.ask("POST", f"{path}/signatures", signature_of(terms, admin))
        case "forge":
            return board.ask("POST", f"{path}/signatures", {"admin": admin, "signature": "00" * 64})
        case "steal":
            return board.ask("POST", f"{path}/signatures", signature_of(terms, other) | {"admin": admin})
        case "publish":
            return board.publish(terms)
        case _:
            return board.withdraw(terms)


def test_the_terms_that_are_signed_say_one_thing(tally: Tally) -> None:
    @fuzzed(3)
    @given(messages(Terms), seeds)
    def check(terms: Terms, seed: int) -> None:
        data = bent_bytes(chance(seed), encode(terms))
        try:
            read = decode(Terms, data)
        except ProtocolError as refusal:
            tally.inputs += 1
            tally.refuses(refusal.code)
            return
        tally.inputs += 1
        tally.accepts(right=encode(read) == data and id_of(read) != id_of(terms))

    check()
