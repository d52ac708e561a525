"""The service takes up what is published as it runs: each request is judged under the manifest that it names."""

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from flask.testing import FlaskClient
from live import wait_until
from test_manifest import ADMINS, PINS, signed
from test_succession import after
from world import NOW, RULE, TODAY, make_world, name

from insurer_agent.acting import Acting as AgentActing
from insurer_agent.stream_consumer import NewestMapping
from protocol.errors import ProtocolError
from protocol.manifest import Manifest, Terms, hash_of
from protocol.party import Party, ServiceParty
from service.acting import Acting
from service.app import make_app
from service.config import save_keys
from service.custodians import Custodians
from service.directory import DataDirectory
from service.published import Published
from transport.manifests import Age
from transport.peers import Peers

WORLD = make_world(7, shards=1)
FOREVER = WORLD.manifest.terms.issued_at + 366 * 86_400
FIRST = replace(WORLD.manifest.terms, valid_until=FOREVER)
SECOND = replace(after(FIRST, rules=(RULE, replace(RULE, version=2, limit=1, valid_from=TODAY))), valid_until=FOREVER)
THIRD = replace(after(SECOND, rules=SECOND.rules), valid_until=FOREVER)
OTHER = replace(after(THIRD), valid_until=FOREVER)
"""Never published."""


@pytest.fixture
def acting(tmp_path: Path) -> Acting:
    (tmp_path / "manifest.bin").write_bytes(signed(FIRST, *ADMINS))
    return Acting(WORLD.service.keys, Published(tmp_path / "manifests", PINS, tmp_path / "manifest.bin"))


def test_a_check_is_judged_under_the_newest_or_for_a_minute_the_one_before_and_a_deposit_under_any(
    acting: Acting,
) -> None:
    assert acting.of_check(hash_of(FIRST)).manifest.hash == hash_of(FIRST)
    acting.published.publish(signed(SECOND, *ADMINS), NOW)
    # A worker that another one has published to, and that is told by a request at the latest.
    assert acting.of_check(hash_of(SECOND)).manifest.hash == hash_of(SECOND)
    assert acting.of_check(hash_of(FIRST)).manifest.hash == hash_of(FIRST)
    acting._acts = replace(acting._acts, before_until=time.monotonic() - 0.001)
    assert acting.of_check(hash_of(FIRST)).manifest.hash == hash_of(SECOND)
    acting.published.publish(signed(THIRD, *ADMINS), NOW)
    for terms, judged in ((FIRST, THIRD), (SECOND, SECOND), (THIRD, THIRD), (OTHER, THIRD)):
        assert acting.of_check(hash_of(terms)).manifest.hash == hash_of(judged)
    for terms, judged in ((FIRST, FIRST), (SECOND, SECOND), (THIRD, THIRD), (OTHER, THIRD)):
        assert acting.of_deposit(hash_of(terms)).manifest.hash == hash_of(judged)


def test_a_worker_sees_within_a_second_what_another_has_published(acting: Acting, tmp_path: Path) -> None:
    another = Published(tmp_path / "manifests", PINS, tmp_path / "manifest.bin")
    began = acting.now()
    another.publish(signed(SECOND, *ADMINS), NOW)
    acting.published.look_again()  # as a second later
    assert acting.now().manifest.hash == hash_of(SECOND)
    assert began.manifest.hash == hash_of(FIRST)  # an operation that has begun stays with its own


def test_a_manifest_with_another_ca_is_taken_up_by_who_begins_with_it_and_by_nobody_that_runs(
    acting: Acting, tmp_path: Path
) -> None:
    urls = tuple(replace(member, url=f"https://{member.id}.example") for member in FIRST.members)
    over_tls = {"plain_http": 0, "tls_authority": b"\x01" * 32, "members": urls, "service_url": "https://s.example"}
    other = replace(SECOND, **over_tls)  # type: ignore[arg-type]  fields of several types
    (tmp_path / "manifest.bin").write_bytes(signed(other, *ADMINS))
    begun = Acting(WORLD.service.keys, Published(tmp_path / "manifests", PINS, tmp_path / "manifest.bin"))
    acting.published.look_again()
    assert acting.now().manifest.hash == acting.of_check(hash_of(other)).manifest.hash == hash_of(FIRST)
    assert begun.now().manifest.hash == hash_of(other)
    agent = AgentActing(Party(name(1), WORLD.members[name(1)].party.keys, Manifest.of(FIRST)))
    with pytest.raises(ProtocolError, match="other-connections"):
        agent._take_up(Manifest.of(other))
    assert agent.now().manifest.hash == hash_of(FIRST)


def test_an_earlier_manifest_is_good_for_deposits_as_long_as_the_newest(tmp_path: Path) -> None:
    first = replace(FIRST, valid_until=int(NOW) + 60)
    (tmp_path / "manifest.bin").write_bytes(signed(first, *ADMINS))
    acting = Acting(WORLD.service.keys, Published(tmp_path / "manifests", PINS, tmp_path / "manifest.bin"))
    acting.published.publish(signed(replace(SECOND, previous=hash_of(first)), *ADMINS), NOW)
    late = NOW + 600
    acting.of_deposit(hash_of(first)).manifest.require_current(hash_of(first), late)
    with pytest.raises(ProtocolError, match="manifest-expired"):
        acting.of_check(hash_of(first)).manifest.require_current(hash_of(first), late)


def test_a_relay_and_a_line_under_another_manifest_share_all_but_that(tmp_path: Path) -> None:
    line = Custodians(WORLD.service, Peers(), DataDirectory(WORLD.manifest, tmp_path / "directory"))
    moved = tuple(replace(member, url="http://127.0.0.1:2") for member in FIRST.members)
    other = line.under(ServiceParty(WORLD.service.keys, Manifest.of(replace(SECOND, members=moved))))
    assert other._call(name(1), "/x", b"").url == "http://127.0.0.1:2"
    assert line._call(name(1), "/x", b"").url == "http://127.0.0.1:1"
    assert other._until is line._until


# --- over HTTP -----------------------------------------------------------------------------------------------------


@pytest.fixture
def client(tmp_path: Path) -> Iterator[FlaskClient]:
    with served(tmp_path, FIRST) as client:
        yield client


def served(tmp_path: Path, terms: Terms) -> FlaskClient:
    state = tmp_path / "service"
    state.mkdir()
    (state / "manifest.bin").write_bytes(signed(terms, *ADMINS))
    keys = {admin: key.hex() for admin, key in PINS.keys.items()}
    (state / "admins.json").write_text(json.dumps({"threshold": PINS.threshold, "keys": keys}), encoding="utf-8")
    (state / "config.toml").write_text("port = 1\nallow_plain_http = true\n", encoding="utf-8")
    save_keys(WORLD.service.keys, state)
    return make_app(state).test_client()


def publish(tmp_path: Path, terms: Terms) -> bytes:
    data = signed(terms, "admin-a", "admin-b")
    Published(tmp_path / "service" / "manifests", PINS, tmp_path / "service" / "manifest.bin").publish(data, NOW)
    return data


def test_the_newest_manifest_is_given_to_who_has_another_and_earlier_ones_by_hash(
    client: FlaskClient, tmp_path: Path
) -> None:
    first = client.get("/v1/manifest")
    assert (first.status_code, first.data, first.headers["ETag"]) == (
        200,
        signed(FIRST, *ADMINS),
        f'"{hash_of(FIRST).hex()}"',
    )
    same = {"If-None-Match": f'"{hash_of(FIRST).hex()}"'}
    unchanged = client.get("/v1/manifest", headers=same)
    assert (unchanged.status_code, unchanged.data) == (304, b"")
    data = publish(tmp_path, SECOND)
    wait_until(lambda: client.get("/v1/manifest", headers=same).data == data)  # in a second
    assert client.get(f"/v1/manifests/{hash_of(FIRST).hex()}").data == first.data
    assert client.get(f"/v1/manifests/{hash_of(SECOND).hex()}").data == data
    for path in (hash_of(OTHER).hex(), "00" * 31, hash_of(FIRST).hex().upper(), "..", "%2e%2e%2fmanifest.bin"):
        answer = client.get(f"/v1/manifests/{path}")
        assert answer.status_code == 404
        assert answer.content_type == "application/problem+json"


def test_an_expired_manifest_is_said_by_readiness_and_handed_out_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its service starts, so that the next one can be published."""
    expired = replace(FIRST, valid_until=int(NOW))
    with served(tmp_path, expired) as client:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.get_json()["code"]) == (503, "manifest-expired")
        assert client.get("/v1/manifest").status_code == 200
        assert [record.levelname for record in caplog.records] == ["ERROR"]
        publish(tmp_path, replace(SECOND, previous=hash_of(expired)))
        wait_until(lambda: client.get("/readyz").status_code == 200)


# --- the agent's side ----------------------------------------------------------------------------------------------


def test_a_manifest_is_ending_from_two_weeks_before() -> None:
    manifest, day = Manifest.of(replace(FIRST, valid_until=int(NOW))), 86_400
    ages = [Age.of(manifest, NOW - days * day) for days in (14.01, 14, 13.99, 0.01, 0, -1)]
    assert [age.value for age in ages] == ["good", "good", "ending", "ending", "expired", "expired"]


def test_a_consumer_reads_entries_by_the_products_of_the_newest_manifest() -> None:
    keys = WORLD.members[name(1)].party.keys
    acting = AgentActing(Party(name(1), keys, Manifest.of(FIRST)))
    mapping = NewestMapping(acting)
    policy = {
        "policy_number": "A-1",
        "document_type": "passport",
        "document_number": "E10000001",
        "product": "travel",
        "insured_amount": "100.00",
        "issued_on": "2026-11-01",
        "event": "issue",
    }
    entry = (b"policy", json.dumps(policy).encode())
    assert getattr(mapping.policy(entry), "code", None) is not None
    acting._take_up(Manifest.of(replace(SECOND, products=(*SECOND.products, "travel"))))
    assert getattr(mapping.policy(entry), "code", None) is None
