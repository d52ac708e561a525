"""Settings, key files and commands: what is wrong is said in one line, before anything runs."""

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from live import write_policies
from world import make_world, seeded

import transport.server
from insurer_agent import cli as agent_cli
from insurer_agent.config import Settings
from insurer_agent.keys import AgentKeys
from protocol import signing
from protocol.encoding import decode, encode
from protocol.enrolment import enrol, read_enrolment
from protocol.errors import ProtocolError
from protocol.manifest import AdminPins, SignedManifest, open_manifest
from protocol.party import MemberKeys
from protocol.secret import Secret
from service import cli as service_cli
from service.admin import cli as admin_cli
from service.admin.manifests import add_signature, pins_json, unsigned
from service.api_keys import ApiKeys, Role
from service.config import Settings as ServiceSettings
from service.config import generate_keys, load_keys, save_keys
from transport.settings import SettingsError, load_pins, write_private

SALT = "ab" * 32


def settings(state: Path, text: str) -> Settings:
    (state / "config.toml").write_text(text, encoding="utf-8")
    return Settings.load(state)


GOOD = 'member_id = "insurer-01"\nport = 8443\n'


def test_settings_have_defaults_and_paths_in_the_state_directory(tmp_path: Path) -> None:
    loaded = settings(tmp_path, GOOD)
    assert (loaded.host, loaded.check_seconds, loaded.database) == ("127.0.0.1", 2.0, None)
    assert loaded.manifest == tmp_path / "manifest.bin"


def test_the_environment_takes_the_place_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSURER_AGENT_PORT", "9000")
    assert settings(tmp_path, GOOD).port == 9000


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("port = 8443\n", "member_id"),
        (GOOD + 'prot = "x"\n', "prot"),
        (GOOD.replace("8443", "99999"), "port"),
        (GOOD + 'database = "db.internal"\n', "database"),
        (GOOD + "check_seconds = 0\n", "check_seconds"),
        (GOOD + "checks_a_second = 0\n", "checks_a_second"),
        (GOOD + "policies_at_once = 0\n", "policies_at_once"),
        (GOOD + "redis_seconds = 0\n", "redis_seconds"),
        ("not toml", "TOML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        settings(tmp_path, text)


@pytest.mark.parametrize("url", ["s3cret.internal", "http://s3cret", "redis://h:s3cret", "redis://:s3cret@h?s3cret=1"])
@pytest.mark.parametrize("kind", [Settings, ServiceSettings])
def test_a_wrong_redis_is_named_and_not_quoted(
    tmp_path: Path, kind: type[Settings | ServiceSettings], url: str
) -> None:
    text = f'port = 8443\nredis = "{url}"\n' + ('member_id = "insurer-01"\n' if kind is Settings else "")
    (tmp_path / "config.toml").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError, match=r"redis: the Redis URL .*: redis://user:password@host:port") as refused:
        kind.load(tmp_path)
    assert "s3cret" not in str(refused.value)


def test_redis_is_named_by_the_environment_too_and_never_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "rediss://user:s3cret@redis.internal:6380/1"
    monkeypatch.setenv("INSURER_AGENT_REDIS", url)
    monkeypatch.setenv("LOOKUP_SERVICE_REDIS", url)
    loaded = settings(tmp_path, GOOD)
    (tmp_path / "config.toml").write_text("port = 8443\n", encoding="utf-8")
    service = ServiceSettings.load(tmp_path)
    assert loaded.redis == service.redis == url
    assert "s3cret" not in repr(loaded) + repr(service)


def test_a_local_alliance_refuses_a_wrong_redis_before_it_makes_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(1, 6):
        write_policies(tmp_path / "policies", number, [])
    command = ["local", "--members", "5", "--policies", str(tmp_path / "policies"), "--state", str(tmp_path / "state")]
    assert admin_cli.main([*command, "--redis", "http://s3cret"]) == 2
    assert capsys.readouterr().err.startswith("alliance: the Redis URL is not redis://")
    assert not (tmp_path / "state").exists()


def test_a_misspelt_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSURER_AGENT_TREADS", "4")
    with pytest.raises(SettingsError, match="treads"):
        settings(tmp_path, GOOD)


def test_keys_are_read_back_and_never_overwritten(tmp_path: Path) -> None:
    keys = AgentKeys.generate(Secret(bytes.fromhex(SALT)))
    keys.save(tmp_path)
    assert AgentKeys.load(tmp_path) == keys
    assert (tmp_path / "keys.json").stat().st_mode & 0o777 == 0o600
    with pytest.raises(SettingsError, match="exists"):
        keys.save(tmp_path)
    assert SALT not in repr(keys)


def test_a_private_file_outlasts_a_power_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []

    def noted(descriptor: int, sync: Callable[[int], None] = os.fsync) -> None:
        synced.append((os.fstat(descriptor).st_ino, (tmp_path / "file").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_private(tmp_path / "file", b"1")
    ApiKeys(tmp_path, time.time).make("ann", Role.ADMIN, 1, bytes)
    ends = [tmp_path / "file", tmp_path, tmp_path / "api-keys.json", tmp_path]
    there = [False, True, True, True]  # the folder is written after the file has its name
    assert synced == [(place.stat().st_ino, is_there) for place, is_there in zip(ends, there, strict=True)]


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    AgentKeys.generate(Secret(bytes.fromhex(SALT))).save(tmp_path)
    (tmp_path / "keys.json").chmod(0o640)
    with pytest.raises(SettingsError, match="chmod 600"):
        AgentKeys.load(tmp_path)


@pytest.mark.parametrize("damage", [b"", b"{}", b"[]", b'{"signing": "zz"}', b"\xff"])
def test_a_damaged_key_file_is_refused_without_showing_it(tmp_path: Path, damage: bytes) -> None:
    write_private(tmp_path / "keys.json", damage)
    with pytest.raises(SettingsError, match="damaged"):
        AgentKeys.load(tmp_path)


def test_a_key_of_the_wrong_length_or_an_unreduced_index_is_refused(tmp_path: Path) -> None:
    AgentKeys.generate(Secret(bytes.fromhex(SALT))).save(tmp_path)
    good = json.loads((tmp_path / "keys.json").read_bytes())
    for change in ({"storage": "00"}, {"index": "ff" * 32}, {"index": "00" * 32}):
        write_private(tmp_path / "keys.json", json.dumps(good | change).encode())
        with pytest.raises(SettingsError, match="damaged"):
            AgentKeys.load(tmp_path)


@pytest.mark.parametrize(
    ("lines", "flights"), [("", 8), ("threads = 4\n", 4), ("flights = 3\n", 3), ("threads = 20\nflights = 20\n", 20)]
)
def test_a_service_has_eight_flights_at_once_unless_told_and_no_more_than_threads(
    tmp_path: Path, lines: str, flights: int
) -> None:
    (tmp_path / "config.toml").write_text("port = 1\n" + lines)
    assert ServiceSettings.load(tmp_path).flights == flights


@pytest.mark.parametrize("lines", ["flights = 0\n", "flights = 17\n", "threads = 100\nflights = 65\n"])
def test_flights_that_cannot_be_are_refused(tmp_path: Path, lines: str) -> None:
    (tmp_path / "config.toml").write_text("port = 1\n" + lines)
    with pytest.raises(SettingsError, match="flights"):
        ServiceSettings.load(tmp_path)


def test_the_services_keys_are_read_back_and_never_overwritten(tmp_path: Path) -> None:
    keys = generate_keys()
    save_keys(keys, tmp_path)
    assert load_keys(tmp_path) == keys
    with pytest.raises(SettingsError, match="exists"):
        save_keys(keys, tmp_path)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"threshold": 2, "keys": {"a": "00"}}', '{"threshold": 1, "keys": {"a": 5}}']
)
def test_bad_pins_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "admins.json").write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError):
        load_pins(tmp_path / "admins.json")


def test_an_enrolment_is_signed_by_its_own_key() -> None:
    random = seeded("enrolment")
    enrolment = enrol(MemberKeys.generate(Secret(random(32)), random), "insurer-01", "owner", "http://127.0.0.1:1")
    assert read_enrolment(dict(enrolment))[0].id == "insurer-01"
    for name in enrolment:
        changed = enrolment | {name: enrolment[name][:-1] + ("0" if enrolment[name][-1] != "0" else "1")}
        with pytest.raises(ProtocolError, match="bad-enrolment"):
            read_enrolment(dict(changed))


def test_an_alliance_is_set_up_by_hand_with_two_of_three_admins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    salt = tmp_path / "salt.hex"
    assert agent_cli.main(["salt", str(salt)]) == 0
    enrolments = []
    for number in range(1, 6):
        state, member = tmp_path / f"m{number}", f"insurer-{number:02d}"
        url = f"https://127.0.0.1:{9000 + number}"
        arguments = ["--state", str(state), "--member", member, "--url", url, "--salt-file", str(salt)]
        assert agent_cli.main(["init", *arguments]) == 0
        enrolments.append(str(state / "enrolment.json"))
    service = tmp_path / "service"
    assert service_cli.main(["init", "--state", str(service), "--url", "https://127.0.0.1:9000"]) == 0
    ca = tmp_path / "ca"
    assert admin_cli.main(["ca-init", str(ca), "--alliance", "by hand"]) == 0

    admins = {}
    for name in ("ann", "bo", "cai"):
        capsys.readouterr()
        assert admin_cli.main(["admin-key", str(tmp_path / f"{name}.key")]) == 0
        admins[name] = capsys.readouterr().out.strip()
    manifest = tmp_path / "manifest.bin"
    create = ["manifest-create", str(manifest), *enrolments, "--alliance", "by hand"]
    create += ["--service", str(service / "service.json"), "--ca", str(ca / "ca.pem")]
    create += ["--shards", "2", "--expected-persons"]
    other = [part if part != "by hand" else "another" for part in create]
    assert admin_cli.main([*other, "20000"]) == 2
    assert "is the CA of the alliance by hand" in capsys.readouterr().err
    assert admin_cli.main([*create, "19999"]) == 2
    assert "10,000 persons" in capsys.readouterr().err
    assert admin_cli.main([*create, "20000"]) == 0

    pins = AdminPins({name: bytes.fromhex(key) for name, key in admins.items()}, 2)
    for name, enough in (("ann", False), ("cai", True)):
        sign = ["manifest-sign", str(manifest), "--admin", name, "--key", str(tmp_path / f"{name}.key")]
        assert admin_cli.main(sign) == 0
        data = manifest.read_bytes()
        if enough:
            assert open_manifest(data, pins, time.time()).terms.alliance == "by hand"
        else:
            with pytest.raises(ProtocolError, match="under-signed"):
                open_manifest(data, pins, time.time())
    capsys.readouterr()
    assert admin_cli.main(["manifest-show", str(manifest)]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["signed_by"] == ["ann", "cai"]
    assert shown["terms"]["rules"][0]["limit"] == 5_000_000_000
    assert encode(decode(SignedManifest, manifest.read_bytes())) == manifest.read_bytes()

    second = [str(tmp_path / "second.bin") if part == str(manifest) else part for part in create]
    second += ["20000", "--previous", str(manifest), "--serial"]
    assert admin_cli.main([*second, "1"]) == 2
    assert "no higher serial" in capsys.readouterr().err
    rules = Path(__file__).parent.parent / "deploy" / "rules.toml"  # another accident-30d version 1
    assert admin_cli.main([*second, "2", "--rules", str(rules)]) == 2
    assert "accident-30d version 1 said something else before" in capsys.readouterr().err
    assert admin_cli.main([*second, "2"]) == 0


def test_plain_http_takes_the_manifest_and_ones_own_settings(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    world, key, service = make_world(5, shards=1), Secret(bytes(range(32))), tmp_path / "service"
    now = int(time.time())
    terms = replace(world.manifest.terms, issued_at=now - 10, valid_until=now + 1000)
    save_keys(world.service.keys, make(service))
    (service / "manifest.bin").write_bytes(encode(add_signature(unsigned(terms), "a", key)))
    (service / "admins.json").write_text(pins_json({"a": signing.public_key(key)}, threshold=1), encoding="utf-8")
    (service / "config.toml").write_text("port = 1\n", encoding="utf-8")
    served: list[object] = []
    monkeypatch.setattr(transport.server, "serve", lambda _app, **options: served.append(options["tls"]))
    serve = ["serve", "--state", str(service)]
    assert service_cli.main(serve) == 2
    assert "set allow_plain_http = true" in capsys.readouterr().err
    assert served == []
    (service / "config.toml").write_text("port = 1\nallow_plain_http = true\n", encoding="utf-8")
    assert service_cli.main(serve) == 0
    assert served == [None]
    assert caplog.text.count("PLAIN HTTP: NOTHING PROTECTS") == 1


def make(state: Path) -> Path:
    state.mkdir()
    return state


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["init", "--state", "s", "--member", "a", "--url", "http://x", "--salt-file", "none"], "salt file none"),
        (["serve", "--state", "nowhere"], "config.toml cannot be read"),
        (["import", "--state", "nowhere", "x.csv"], "config.toml cannot be read"),
    ],
)
def test_a_command_that_cannot_run_says_why_and_ends_with_status_2(
    arguments: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert agent_cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_a_local_alliance_needs_five_members_and_a_file_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    local = ["local", "--policies", str(tmp_path), "--state", str(tmp_path / "state"), "--members"]
    assert admin_cli.main([*local, "4"]) == 2
    assert "at least 5 members" in capsys.readouterr().err
    assert admin_cli.main([*local, "5"]) == 2
    assert "insurer-01.csv" in capsys.readouterr().err
    assert not (tmp_path / "state").exists()


def test_a_local_alliance_leaves_a_foreign_directory_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policies, state = tmp_path / "policies", tmp_path / "state"
    policies.mkdir()
    state.mkdir()
    (state / "thesis.txt").write_text("mine", encoding="utf-8")
    for number in range(1, 6):
        (policies / f"insurer-{number:02d}.csv").touch()
    assert admin_cli.main(["local", "--policies", str(policies), "--state", str(state), "--members", "5"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert [entry.name for entry in state.iterdir()] == ["thesis.txt"]
