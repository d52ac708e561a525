"""Roles of API keys: who may ask what, from the application itself; how keys end, and what is remembered of them."""

import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from live import Answer
from strategies import deterministic
from test_store_misc import opened
from underwriting import House, check, somebody, underwriting_house

from insurer_agent import cli as agent_cli
from insurer_agent.embedded_postgres import EmbeddedPostgres
from insurer_agent.rest import make_app
from insurer_agent.rest.access import PUBLIC, table
from insurer_agent.rest.openapi import document
from insurer_agent.roles import DAYS, MAX_DAYS, Role
from insurer_agent.store import api_keys
from insurer_agent.store.api_keys import MAX_REMEMBERED, REMEMBERED_SECONDS, ApiKeys, Holder
from insurer_agent.store.database import Database
from transport.problems import Problem

TABLE = (Path(__file__).parent.parent / "deploy" / "agent-roles.md").read_text(encoding="utf-8")
ROLES = [role.value for role in Role]
SHUT = {401, 403}
Endpoint = tuple[str, str]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, postgres: EmbeddedPostgres) -> Iterator[House]:
    with underwriting_house(tmp_path_factory.mktemp("roles"), postgres) as house:
        yield house


@pytest.fixture
def store(database: str) -> Iterator[Database]:
    with opened(database) as store:
        yield store


@pytest.fixture(scope="module")
def app(house: House) -> Flask:
    return make_app(house.agent)


def documented() -> dict[Endpoint, set[str] | None]:
    """Return who may ask each endpoint, None for all, as the document has it."""
    found: dict[Endpoint, set[str] | None] = {}
    for row in re.findall(r"^\| ([A-Z]+) \| `(\S+)` \| (.*) \|$", TABLE, re.MULTILINE):
        method, address, cells = row
        said = dict(zip(ROLES, cells.split(" | "), strict=True))
        assert set(said.values()) in ({"public"}, {"yes"}, {"yes", "-"}), row
        found[method, address] = (
            None if "public" in said.values() else {role for role, cell in said.items() if cell == "yes"}
        )
    return found


# --- who may ask what ----------------------------------------------------------------------------------------------


def test_the_table_of_roles_by_endpoint_is_the_applications(app: Flask) -> None:
    assert "| method | address | " + " | ".join(ROLES) + " |" in TABLE
    made = {at: None if roles is None else {role.value for role in roles} for at, roles in table(app).items()}
    assert documented() == made
    assert all(roles is None or roles for roles in made.values()), "an endpoint that is nobody's"


def test_the_interfaces_description_says_the_roles(app: Flask) -> None:
    described = document(table(app))["paths"]
    said = {
        (method.upper(), path): set(operation["x-roles"]) if "x-roles" in operation else None
        for path, methods in described.items()
        for method, operation in methods.items()
        if method != "parameters"
    }
    expected = {
        (method, re.sub(r"<(?:path:)?(\w+)>", r"{\1}", at)): roles for (method, at), roles in documented().items()
    }
    assert said.items() <= expected.items()
    assert all(path.startswith(("/docs", "/openapi")) for _, path in expected.keys() - said.keys())
    for path, methods in described.items():
        for method, operation in methods.items():
            if method != "parameters" and (roles := said[method.upper(), path]) is not None:
                assert {"401", "403"} <= operation["responses"].keys()
                assert all(role in operation["description"] for role in roles)


def asked(house: House, endpoint: Endpoint, key: str | None) -> Answer:
    """Ask an endpoint for something that is not there, or with what is no request."""
    method, address = endpoint
    path = re.sub(r"<(?:path:)?\w+>", "0" * 32, address)
    headers = {"Authorization": "" if key is None else f"Bearer {key}"}
    return house.request(method, path, {} if method in ("POST", "PUT") else None, **headers)


def made(house: House, name: str, *roles: Role) -> str:
    return house.agent.api_keys.make(name, secrets.token_bytes, roles=roles, replace=True)


def test_every_endpoint_lets_in_whom_the_table_names_and_nobody_else(house: House) -> None:
    keys = {role: made(house, role.value, role) for role in Role}
    bad: dict[str | None, str] = {
        made(house, "expired", *Role): "api-key-expired",
        made(house, "revoked", *Role): "unauthorized",
    }
    house.there.aside.execute("UPDATE api_key SET expires_at = now() WHERE name = 'expired'")
    house.agent.api_keys.revoke("revoked")
    bad |= {None: "unauthorized", "cover_" + "0" * 64: "unauthorized"}
    for endpoint, may in documented().items():
        for role, key in keys.items():
            answer = asked(house, endpoint, key)
            if may is None or role.value in may:
                assert answer.status not in SHUT, (endpoint, role)
                continue
            assert (answer.status, answer.body["code"]) == (403, "forbidden-role"), (endpoint, role)
            assert all(name in answer.body["hint"] for name in may)
        for key, code in bad.items():
            answer = asked(house, endpoint, key)
            if may is None:
                assert answer.status not in SHUT
            else:
                assert (answer.status, answer.body["code"]) == (401, code), endpoint
                assert answer.body["hint"]


@deterministic(30)
@given(st.sets(st.sampled_from(list(Role)), min_size=1))
def test_a_key_of_several_roles_may_what_any_of_them_may(house: House, roles: set[Role]) -> None:
    key = made(house, "several", *roles)
    for endpoint, may in documented().items():
        let_in = may is None or not may.isdisjoint(role.value for role in roles)
        assert (asked(house, endpoint, key).status not in SHUT) == let_in, endpoint


def test_an_endpoint_that_declares_no_roles_is_nobodys_and_a_public_one_is_so_by_name(house: House) -> None:
    app = make_app(house.agent)
    app.add_url_rule("/v1/new", endpoint="new", view_func=lambda: "told", methods=["GET", "POST"])
    key = made(house, "everything", *Role)
    client = app.test_client()
    for method in ("get", "post", "head", "options"):
        answer = getattr(client, method)("/v1/new", headers={"Authorization": f"Bearer {key}"})
        assert (answer.status_code, answer.content_type) == (403, "application/problem+json")
    assert table(app)["GET", "/v1/new"] == frozenset()
    assert {"healthz", "readyz", "openapi", "/docs", "/docs/try.js", "/docs/try.css"} == PUBLIC
    assert {rule.endpoint for rule in app.url_map.iter_rules()} >= PUBLIC
    assert client.get("/v1/none").status_code == 404
    assert client.delete("/v1/checks").status_code == 405


# --- keys by REST --------------------------------------------------------------------------------------------------


def test_an_admin_makes_lists_and_revokes_keys_and_an_auditor_reads_their_names(house: House) -> None:
    admin, auditor = made(house, "an-admin", Role.ADMIN), made(house, "an-auditor", Role.AUDITOR)

    def ask(method: str, path: str = "", body: object = None, key: str = admin) -> Answer:
        return house.request(method, "/v1/api-keys" + path, body, Authorization=f"Bearer {key}")

    new = ask("POST", "", {"name": "core/system", "roles": ["data_operator", "underwriter"], "days": 10})
    assert (new.status, new.headers["Cache-Control"]) == (201, "no-store")
    key = new.body["api_key"]
    assert house.request("POST", "/v1/checks", check(somebody()), Authorization=f"Bearer {key}").status == 200
    assert ask("POST", "", {"name": "core/system", "roles": ["admin"]}).body["code"] == "name-in-use"
    for who in (admin, auditor):
        listed = ask("GET", key=who)
        assert key not in str(listed.body)
        (one,) = (entry for entry in listed.body["api_keys"] if entry["name"] == "core/system")
        assert one["roles"] == ["underwriter", "data_operator"]
        assert one["last_used_at"] is not None
        assert one["expires_at"] > one["created_at"]
    status = house.request("GET", "/v1/status", Authorization=f"Bearer {auditor}").body
    assert "core/system" in [entry["name"] for entry in status["api_keys_ending"]]
    assert "an-admin" not in [entry["name"] for entry in status["api_keys_ending"]]
    assert ask("DELETE", "/core/system", key=auditor).status == 403
    assert (ask("DELETE", "/core/system").status, ask("DELETE", "/core/system").status) == (204, 404)
    assert ask("DELETE", "/%00").status == 404
    assert house.request("POST", "/v1/checks", check(somebody()), Authorization=f"Bearer {key}").status == 401


@pytest.mark.parametrize(
    "change",
    [
        *({"roles": []}, {"roles": ["owner"]}, {"roles": "admin"}, {"roles": None}, {"roles": ["admin"] * 5}),
        *({"days": 0}, {"days": MAX_DAYS + 1}, {"days": "9"}, {"days": 1.5}, {"days": True}, {"name": ""}),
        *(
            {"name": "a\tb"},
            {"name": "x" * 200},
            {"name": "\x00"},
            {"name": "\ud800"},
            {"replace": "yes"},
            {"key": "mine"},
        ),
    ],
    ids=str,
)
def test_a_key_that_cannot_be_is_not_made(house: House, change: dict[str, Any]) -> None:
    admin = made(house, "an-admin", Role.ADMIN)
    body = {"name": "bad", "roles": ["auditor"]} | change
    before = house.agent.api_keys.entries()
    answer = house.request("POST", "/v1/api-keys", body, Authorization=f"Bearer {admin}")
    assert (answer.status, bool(answer.body["hint"])) == (422, True)
    assert [entry.name for entry in house.agent.api_keys.entries()] == [entry.name for entry in before]


# --- how keys end, and what is remembered --------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counted:
    """A database of which the trips are counted."""

    def __init__(self, store: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trips, run = 0, store.run

        def counted(name: str, transaction: Callable[..., Any], **how: bool) -> Any:  # noqa: ANN401  as `run`
            self.trips += 1
            return run(name, transaction, **how)

        monkeypatch.setattr(store, "run", counted)


def test_a_key_is_read_once_in_five_seconds_and_its_revocation_elsewhere_counts_by_then(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, counted = Clock(), Counted(store, monkeypatch)
    here, elsewhere = ApiKeys(store, clock), ApiKeys(store)
    key = elsewhere.make("underwriting", secrets.token_bytes, roles=[Role.UNDERWRITER])
    assert here.holder(key) == Holder("underwriting", frozenset({Role.UNDERWRITER}))
    before = counted.trips
    (_, until) = here._remembered._known[api_keys._hash(key)]
    assert clock.now < until <= clock.now + REMEMBERED_SECONDS
    assert here.holder(key) is not None
    assert counted.trips == before
    elsewhere.revoke("underwriting")
    clock.now = until - 0.001
    assert here.holder(key) is not None
    clock.now = until
    assert here.holder(key) is None
    assert here.holder(key) is None, "an unknown key is looked up each time"


def test_a_key_is_remembered_to_its_end_at_the_longest_and_not_past_the_hour(
    store: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    keys = ApiKeys(store, clock)
    key = keys.make("ending", secrets.token_bytes, roles=Role)
    change = "UPDATE api_key SET expires_at = now() + interval '2 seconds'"
    store.run("end", lambda connection: connection.execute(change))
    assert keys.holder(key) is not None
    (_, until) = keys._remembered._known[api_keys._hash(key)]
    assert until <= clock.now + 2
    # The query says how long it may be: to the key's end, or the next full hour, by the database's clock.
    store.run("go on", lambda connection: connection.execute("UPDATE api_key SET expires_at = NULL"))
    query = b"SELECT extract(epoch FROM date_trunc('hour', now()) + interval '1 hour' - now())::float"
    both = api_keys._FIND.encode(), query
    digest = (api_keys._hash(key),)
    left, to_the_hour = store.run(
        "read both",
        lambda connection: (
            connection.execute(both[0], digest).fetchone()[3],  # type: ignore[index]  # it has a row
            connection.execute(both[1]).fetchone()[0],  # type: ignore[index]  # it has a row
        ),
    )
    assert left == to_the_hour
    monkeypatch.setattr(api_keys, "REMEMBERED_SECONDS", 7200.0)
    clock.now += 10
    assert keys.holder(key) is not None
    (_, until) = keys._remembered._known[api_keys._hash(key)]
    assert until <= clock.now + 3600


def test_a_key_that_has_ended_may_nothing_and_is_named_so(store: Database) -> None:
    keys = ApiKeys(store)
    key = keys.make("ended", secrets.token_bytes, roles=Role)
    store.run("end", lambda connection: connection.execute("UPDATE api_key SET expires_at = now()"))
    assert keys.holder(key) == Holder("ended", frozenset(), has_ended=True)
    (entry,) = keys.entries()
    assert entry.last_used_at is None
    (warned,) = keys.ending(entry.created_at)
    assert warned == entry


def test_what_is_remembered_is_bounded_and_has_no_key_in_it(store: Database) -> None:
    keys = ApiKeys(store)
    key = keys.make("underwriting", secrets.token_bytes, roles=Role)
    assert keys.holder(key) is not None
    kept = repr(vars(keys._remembered))
    assert "underwriting" in kept
    assert [
        part for part in (key, key.removeprefix("cover_"), repr(bytes.fromhex(key[6:]))[2:-1]) if part in kept
    ] == []
    holder = Holder("another", frozenset())
    for number in range(2 * MAX_REMEMBERED):
        keys._remembered.keep(number.to_bytes(32, "big"), holder, 1e12)
    assert len(keys._remembered._known) == MAX_REMEMBERED
    for number in range(MAX_REMEMBERED):
        assert keys.holder(f"cover_{number:064x}") is None
    assert len(keys._remembered._known) == MAX_REMEMBERED, "unknown keys drive out none"


def test_keys_made_before_there_were_roles_keep_what_they_could_and_are_named(
    database: str, store: Database, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    keys = ApiKeys(store)
    key = keys.make("of old", secrets.token_bytes, roles=[Role.ADMIN])

    def before(connection: Any) -> None:  # noqa: ANN401  a connection
        connection.execute("ALTER TABLE api_key DROP COLUMN roles")
        connection.execute("ALTER TABLE api_key DROP COLUMN expires_at")

    store.run("as it was", before)
    store.migrate()
    assert ApiKeys(store).holder(key) == Holder("of old", frozenset({Role.UNDERWRITER, Role.DATA_OPERATOR}))
    (entry,) = ApiKeys(store).entries()
    assert entry.expires_at is None
    assert ApiKeys(store).ending(entry.created_at) == [entry]
    store.run("a row", lambda at: at.execute("INSERT INTO api_key (name, hash) VALUES ('by an old version', 'x')"))
    (bare,) = (one for one in ApiKeys(store).entries() if one.name == "by an old version")
    assert bare.roles == (), "what names no roles has none"

    (tmp_path / "config.toml").write_text(f'member_id = "insurer-01"\nport = 1\ndatabase = "{database}"\n', "utf-8")
    assert agent_cli.main(["api-key", "list", "--state", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert re.search(r"\tnever\tunderwriter,data_operator\tof old$", told.out, re.MULTILINE)
    assert "replace them" in told.err
    assert (
        agent_cli.main(["api-key", "make", "of old", "--replace", "--role", "auditor", "--state", str(tmp_path)]) == 0
    )
    assert ApiKeys(store).holder(key) is None
    assert ApiKeys(store).holder(capsys.readouterr().out.strip()) == Holder("of old", frozenset({Role.AUDITOR}))


def test_the_command_names_roles_and_days_or_makes_nothing(
    database: str, store: Database, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(f'member_id = "insurer-01"\nport = 1\ndatabase = "{database}"\n', "utf-8")
    there = ["--state", str(tmp_path)]
    for bad in ([], ["--role", "owner"]):
        with pytest.raises(SystemExit):
            agent_cli.main(["api-key", "make", "x", *bad, *there])
    for days in ("0", str(MAX_DAYS + 1)):
        assert agent_cli.main(["api-key", "make", "x", "--role", "admin", "--days", days, *there]) == 2
    assert ApiKeys(store).entries() == []
    roles = ["--role", "underwriter", "--role", "admin", "--role", "underwriter"]
    assert agent_cli.main(["api-key", "make", "x", *roles, *there]) == 0
    (entry,) = ApiKeys(store).entries()
    assert entry.roles == (Role.UNDERWRITER, Role.ADMIN)
    assert entry.expires_at is not None
    assert (entry.expires_at - entry.created_at).days == DAYS
    with pytest.raises(Problem, match="no-roles"):
        ApiKeys(store).make("y", secrets.token_bytes, roles=[])
    assert agent_cli.main(["api-key", "list", *there]) == 0
    assert "\tunderwriter,admin\tx" in capsys.readouterr().out
