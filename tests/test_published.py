"""The service's folder of manifests: all workers hand out one and the same, and nothing that cannot follow."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from test_manifest import ADMINS, PINS, signed
from test_succession import BENDS, DAY, FIRST, SECOND, after
from world import COUNT_RULE, NOW, RULE

from protocol.errors import ProtocolError
from protocol.manifest import Manifest, Terms
from service.published import Published

NEXT = after(FIRST, rules=(RULE, SECOND, COUNT_RULE))


def file_of(terms: Terms, folder: Path, *admins: str) -> Path:
    file = folder / "manifest.bin"
    file.write_bytes(signed(terms, *(admins or ADMINS)))
    return file


@pytest.fixture
def first(tmp_path: Path) -> Path:
    return file_of(FIRST, tmp_path)


def opened(first: Path) -> Published:
    return Published(first.parent / "manifests", PINS, first)


def refused(published: Published, data: bytes, now: float = NOW) -> str:
    before = published.newest()
    with pytest.raises(ProtocolError) as refusal:
        published.publish(data, now)
    published.look_again()
    assert published.newest() == before
    return refusal.value.code


def test_what_one_worker_publishes_all_hand_out_and_what_was_before_is_kept(first: Path) -> None:
    one, another = opened(first), opened(first)
    assert another.newest() == (first.read_bytes(), Manifest.of(FIRST))
    data = signed(NEXT, "admin-a", "admin-b")
    assert one.publish(data, NOW) == Manifest.of(NEXT)
    another.look_again()
    restarted = opened(first)
    for published in (one, another, restarted):
        assert published.newest() == (data, Manifest.of(NEXT))
        assert published.by_hash(Manifest.of(FIRST).hash) == first.read_bytes()
        assert published.by_hash(Manifest.of(NEXT).hash) == data
        assert published.known(Manifest.of(FIRST).hash) == Manifest.of(FIRST)
        assert published.by_hash(bytes(32)) is None


def test_publishing_again_changes_nothing(first: Path) -> None:
    published, data = opened(first), signed(NEXT, "admin-a", "admin-b")
    published.publish(data, NOW)
    published.publish(signed(NEXT, "admin-b", "admin-c"), NOW)
    published.look_again()
    assert published.newest() == (data, Manifest.of(NEXT))


def test_under_signed_expired_stale_and_forked_manifests_are_refused(first: Path) -> None:
    published = opened(first)
    assert refused(published, signed(NEXT, "admin-a")) == "under-signed"
    assert refused(published, signed(NEXT, *ADMINS)[:-1]) == "malformed"
    assert refused(published, signed(NEXT, *ADMINS), NEXT.valid_until) == "manifest-expired"
    assert refused(published, signed(replace(FIRST, deposit_cap=FIRST.deposit_cap + 1), *ADMINS)) == "manifest-forked"
    published.publish(signed(NEXT, *ADMINS), NOW)
    assert refused(published, signed(replace(NEXT, rules=()), *ADMINS)) == "manifest-forked"
    later = after(NEXT, rules=())
    published.publish(signed(later, *ADMINS), NOW)
    assert refused(published, signed(replace(NEXT, rules=()), *ADMINS)) == "manifest-older"
    assert refused(opened(first), signed(replace(later, serial=later.serial + 2, rules=NEXT.rules), *ADMINS)) == (
        "rule-version-order"
    )


@pytest.mark.parametrize("what", BENDS)
def test_what_cannot_follow_is_refused(first: Path, what: str) -> None:
    bend, code = BENDS[what]
    expected = "manifest-forked" if what == "the same serial" else code
    assert refused(opened(first), signed(bend(after(FIRST)), *ADMINS)) == expected


def test_what_parties_cannot_take_up_while_they_run_is_put_in_place_as_a_file(first: Path) -> None:
    other = after(FIRST, tls_authority=b"\x03" * 32)
    assert refused(opened(first), signed(other, *ADMINS)) == "other-connections"
    assert opened(file_of(other, first.parent)).newest()[1] == Manifest.of(other)


def test_a_newer_file_is_taken_up_at_a_start_and_an_older_or_forked_one_is_not(first: Path) -> None:
    opened(first).publish(signed(NEXT, *ADMINS), NOW)
    renewed = after(NEXT, days=20)
    assert opened(file_of(renewed, first.parent)).newest()[1] == Manifest.of(renewed)
    with pytest.raises(ProtocolError, match="manifest-forked"):
        opened(file_of(replace(renewed, rules=()), first.parent))
    unseen = replace(FIRST, serial=FIRST.serial + 10)
    opened(file_of(replace(renewed, serial=unseen.serial + 1), first.parent))
    with pytest.raises(ProtocolError, match="manifest-older"):
        opened(file_of(unseen, first.parent))
    with pytest.raises(ProtocolError, match="under-signed"):
        opened(file_of(after(renewed), first.parent, "admin-a"))


def test_an_expired_manifest_is_handed_out_until_there_is_another(first: Path) -> None:
    short = replace(FIRST, valid_until=FIRST.issued_at + 1)
    published = opened(file_of(short, first.parent))
    assert published.newest()[1].terms.valid_until < NOW + DAY
    assert published.publish(signed(after(short), *ADMINS), NOW + DAY) == Manifest.of(after(short))


def test_what_follows_another_that_was_signed_or_is_from_the_future_is_refused(first: Path) -> None:
    published, rival = opened(first), after(FIRST, rules=(RULE, replace(SECOND, limit=1), COUNT_RULE))
    published.publish(signed(NEXT, *ADMINS), NOW)
    assert refused(published, signed(after(rival, rules=NEXT.rules), *ADMINS)) == "other-previous"
    assert refused(published, signed(after(NEXT, days=1), *ADMINS)) == "manifest-from-the-future"
    published.publish(signed(after(NEXT), *ADMINS), NOW)


def test_damaged_files_are_not_handed_out(first: Path, caplog: pytest.LogCaptureFixture) -> None:
    published, folder = opened(first), first.parent / "manifests"
    good = signed(NEXT, *ADMINS)
    (folder / f"{7:020d}.bin").write_bytes(good[:-1])
    (folder / f"{8:020d}.bin").write_bytes(good)
    (folder / f"{9:020d}.bin").write_bytes(signed(replace(NEXT, serial=9), "admin-a"))
    (folder / "notes.txt").write_text("of the operator", encoding="utf-8")
    published.look_again()
    assert published.newest()[1] == Manifest.of(FIRST)
    assert [record.getMessage().rpartition(" ")[2] for record in caplog.records] == [
        "malformed",
        "malformed",
        "under-signed",
    ]


def test_of_two_that_are_published_at_once_one_stands(first: Path) -> None:
    """Each is good after the first manifest, and neither after the other."""
    rivals = [replace(NEXT, rules=(RULE, replace(SECOND, limit=limit))) for limit in range(8)]
    outcomes: list[str] = []
    together = threading.Barrier(len(rivals))

    def publish(terms: Terms) -> None:
        published = opened(first)
        together.wait()
        try:
            published.publish(signed(terms, *ADMINS), NOW)
        except ProtocolError as error:
            outcomes.append(error.code)
        else:
            outcomes.append("published")

    threads = [threading.Thread(target=publish, args=(terms,)) for terms in rivals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["manifest-forked"] * 7 + ["published"]
    assert opened(first).newest()[1] in map(Manifest.of, rivals)
    assert len(list((first.parent / "manifests").glob("*.bin"))) == 2
