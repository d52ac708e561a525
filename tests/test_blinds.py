"""Blinds that are drawn ahead: each is given once, for the key that is asked for, and makes the right token."""

import threading
from collections import Counter

from world import person, seeded

from insurer_agent.blinds import Blinds
from protocol import group, voprf
from protocol.secret import Secret
from protocol.token import Token, blind, blind_by, draw_blind, verify_unblinder

_, KEY = voprf.derive_key_pair(bytes(32), b"service")
_, OTHER = voprf.derive_key_pair(bytes(32), b"another")
SALT = Secret(bytes(range(32)))


def test_a_blind_drawn_ahead_makes_the_token_that_one_drawn_now_makes() -> None:
    scalars = (group.scalar_from_int(7), group.scalar_from_int(11))
    ahead = blind_by(SALT, person(1), draw_blind(KEY, scalars), b"context")
    assert ahead == blind(SALT, person(1), KEY, b"context", scalars)
    assert verify_unblinder(ahead, KEY, b"context")
    assert not verify_unblinder(ahead, KEY, b"another context")


def test_a_blind_shows_neither_scalar_nor_point() -> None:
    drawn = draw_blind(KEY, (group.scalar_from_int(7), group.scalar_from_int(11)))
    assert repr(drawn) == f"Blind(service_key={KEY!r})"


def test_each_is_given_once_whoever_asks() -> None:
    blinds, taken, lock = Blinds(4, seeded("once")), [], threading.Lock()

    def ask() -> None:
        for _ in range(25):
            drawn = blinds.take(KEY)
            blinds.refill()
            with lock:
                taken.append(drawn)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in ("scalar", "nonce", "mask", "unblinder", "commitment"):
        assert set(Counter(getattr(drawn, name) for drawn in taken).values()) == {1}, name
    assert len(taken) == 100


def test_none_is_drawn_before_one_was_asked_for_and_no_more_than_are_kept() -> None:
    drawn: list[int] = []
    random = seeded("few")

    def counted(size: int) -> bytes:
        drawn.append(size)
        return random(size)

    blinds = Blinds(3, counted)
    blinds.refill()
    assert drawn == []
    blinds.take(KEY)
    blinds.refill()
    blinds.refill()
    assert len(drawn) == 2 * (1 + 3)
    for _ in range(3):
        blinds.take(KEY)
    assert len(drawn) == 2 * (1 + 3)


def test_threads_that_refill_at_once_draw_no_more_than_is_missing() -> None:
    drawn: list[int] = []
    random, start = seeded("at once"), threading.Barrier(4)

    def counted(size: int) -> bytes:
        drawn.append(size)
        return random(size)

    blinds = Blinds(3, counted)
    blinds.take(KEY)

    def refill() -> None:
        start.wait()
        blinds.refill()

    threads = [threading.Thread(target=refill) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(drawn) == 2 * (1 + 3)


def test_after_the_services_key_has_changed_none_of_the_old_one_is_given() -> None:
    blinds = Blinds(3, seeded("change"))
    blinds.take(KEY)
    blinds.refill()
    for _ in range(5):
        token: Token = blind_by(SALT, person(2), blinds.take(OTHER), b"")
        assert verify_unblinder(token, OTHER, b"")
        blinds.refill()
