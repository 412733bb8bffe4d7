"""The lease of the trainers: the same over every store."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from perdure.errors import LeaseLost, RegistryError
from perdure.registry import JUDGE, Fence, Lease, Registry
from perdure.registry.lease import BEAT, KEPT, TERMS
from perdure.registry.store import Backend

from .registry_suite import FILES, STORES, card, put

SECONDS = 30.0


@pytest.fixture(params=STORES)
def backend(request: pytest.FixtureRequest) -> Backend:
    make: Callable[[pytest.FixtureRequest], Backend] = request.param
    return make(request)


class Clock:
    """Goes on when it is told to. Each process has one of its own, and no two agree."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Trainer:
    """One contender with its clock."""

    def __init__(self, backend: Backend, name: str, seconds: float = SECONDS, start: float = 1000.0) -> None:
        self.clock = Clock(start)
        self.lease = Lease.over(backend, holder=name, seconds=seconds, clock=self.clock)

    def tend(self) -> bool:
        return self.lease.tend()


def later(seconds: float, *trainers: Trainer) -> None:
    for trainer in trainers:
        trainer.clock.now += seconds


class Stumbling:
    """A store whose process is killed before, or whose answer is lost after, the n-th write."""

    def __init__(self, backend: Backend, at: int, *, after: bool) -> None:
        self._backend = backend
        self._left = at
        self._after = after

    @property
    def stumbled(self) -> bool:
        return self._left <= 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    def _write(self, do: Callable[[], object]) -> object:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise OSError("cut off")
        done = do()
        if self._left == 0:
            raise OSError("cut off")
        return done

    def put(self, path: str, file: bytes, *, mode: Any = None) -> object:
        return self._write(lambda: self._backend.put(path, file, mode=mode))

    def delete(self, paths: str) -> object:
        return self._write(lambda: self._backend.delete(paths))


def terms(backend: Backend) -> list[str]:
    return sorted(found["path"] for batch in backend.list(TERMS) for found in batch)


def test_the_first_gets_it_at_once_and_the_second_waits(backend: Backend) -> None:
    first, second = Trainer(backend, "first"), Trainer(backend, "second", start=5.0)
    assert first.tend()
    assert first.lease.term == 1
    for _ in range(20):
        later(SECONDS / 3, first, second)
        assert first.tend()
        assert not second.tend()
    assert second.lease.term == 0
    assert second.lease.seen.holder == "first"
    assert second.lease.others_alive


def test_a_silent_holder_is_succeeded_after_its_time_and_no_sooner(backend: Backend) -> None:
    first, second = Trainer(backend, "first"), Trainer(backend, "second", start=5.0)
    first.tend()
    assert not second.tend()
    later(SECONDS - 0.1, second)
    assert not second.tend()
    later(0.1, second)
    assert second.tend()
    assert second.lease.term == 2
    with pytest.raises(LeaseLost, match=r"term 1 .* is over: second has taken term 2"):
        first.tend()
    assert (first.lease.term, first.lease.held) == (0, False)
    assert not first.tend(), "it waits from then on"
    later(SECONDS, first)
    assert first.tend(), "and takes over when the second falls silent too"


def test_a_sign_of_life_begins_the_wait_anew(backend: Backend) -> None:
    first, second = Trainer(backend, "first"), Trainer(backend, "second")
    first.tend()
    for _ in range(5):
        assert not second.tend()
        later(SECONDS - 1, first, second)
        # The holder's own clock says that it may be too late, but nobody has taken over.
        assert first.tend()


def test_what_counts_is_what_the_holder_promised_not_what_the_other_would(backend: Backend) -> None:
    first, hasty = Trainer(backend, "first", seconds=60), Trainer(backend, "hasty", seconds=1)
    first.tend()
    hasty.tend()
    later(59, hasty)
    assert not hasty.tend()
    later(1, hasty)
    assert hasty.tend()


def test_who_stops_in_good_order_leaves_the_lease_to_the_next(backend: Backend) -> None:
    first, second = Trainer(backend, "first"), Trainer(backend, "second")
    first.tend()
    second.tend()
    first.lease.release()
    assert not first.lease.held
    assert second.tend()
    first.lease.release()
    assert second.tend(), "letting go of what one does not have changes nothing"
    third = Trainer(backend, "third")
    assert not third.tend()


def test_a_holder_that_lost_it_cannot_give_it_away(backend: Backend) -> None:
    first, second, third = (Trainer(backend, name) for name in ("first", "second", "third"))
    first.tend()
    second.tend()
    later(SECONDS, second)
    assert second.tend()
    first.lease.release()
    assert not third.tend()
    assert second.tend()


def test_a_late_sign_of_life_of_an_ended_term_does_not_count(backend: Backend) -> None:
    first, second, third = (Trainer(backend, name) for name in ("first", "second", "third"))
    first.tend()
    old = bytes(backend.get(BEAT).bytes())
    second.tend()
    later(SECONDS, second)
    second.tend()
    assert not third.tend()
    for _ in range(3):
        # Stopped between its last look and this write, over and over.
        backend.put(BEAT, json.dumps({**json.loads(old), "released": True}).encode())
        assert not third.tend()
        assert second.tend()
        assert not third.tend()
    Fence.over(backend, second.lease.term).check()


def test_held_follows_the_own_clock(backend: Backend) -> None:
    first = Trainer(backend, "first")
    first.tend()
    later(SECONDS - 0.1, first)
    assert first.lease.held
    later(0.2, first)
    assert not first.lease.held
    assert first.tend(), "nobody has taken over"


def test_while_the_store_is_away_the_term_lasts_but_the_holder_is_not_sure_of_it(backend: Backend) -> None:
    first = Trainer(backend, "first")
    first.tend()
    away: list[bool] = [True]

    class Away:
        def __getattr__(self, name: str) -> Any:
            if away[0]:
                raise OSError("no route")
            return getattr(backend, name)

    first.lease._terms._store._backend = Away()  # type: ignore[assignment]
    later(SECONDS + 1, first)
    with pytest.raises(RegistryError, match="no route"):
        first.tend()
    assert (first.lease.term, first.lease.held) == (1, False)
    away[0] = False
    assert first.tend()


def test_of_many_at_once_one_gets_it(backend: Backend) -> None:
    for _round in range(5):
        all_of_them = [Trainer(backend, f"{_round}-{number}") for number in range(8)]
        for trainer in all_of_them:
            trainer.tend()
        later(SECONDS, *all_of_them)
        start = threading.Barrier(len(all_of_them))
        lost: list[str] = []

        def run(trainer: Trainer, start: threading.Barrier = start, lost: list[str] = lost) -> None:
            start.wait()
            try:
                trainer.tend()
            except LeaseLost as error:
                lost.append(str(error))

        threads = [threading.Thread(target=run, args=(trainer,)) for trainer in all_of_them]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        holding = [trainer for trainer in all_of_them if trainer.lease.term]
        last = max(trainer.lease.term for trainer in holding)
        alive = [trainer for trainer in holding if trainer.lease.term == last]
        assert len(alive) == 1
        Fence.over(backend, last).check()


def test_old_terms_are_swept_and_numbers_never_come_again(backend: Backend) -> None:
    for number in range(1, 21):
        trainer = Trainer(backend, f"t{number}")
        trainer.tend()
        assert trainer.lease.term == number
        assert len(terms(backend)) <= KEPT + 1
        trainer.lease.release()
    assert terms(backend)[-1].endswith("/00000020.json")
    for number in (1, 14, 15, 19):
        with pytest.raises(LeaseLost):
            Fence.over(backend, number).check()
    # A hint so old that its term is gone, and none at all.
    beat = json.loads(bytes(backend.get(BEAT).bytes()))
    backend.put(BEAT, json.dumps({**beat, "term": 2}).encode())
    late = Trainer(backend, "late")
    assert not late.tend()
    later(SECONDS, late)
    assert late.tend()
    assert late.lease.term == 21
    backend.delete(BEAT)
    late.tend()
    assert late.lease.term == 21


def test_the_last_term_is_found_though_listing_lags_behind(backend: Backend) -> None:
    for number in range(1, 10):
        trainer = Trainer(backend, f"t{number}")
        trainer.tend()
        trainer.lease.release()

    class Blind:
        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def list(self, prefix: str | None = None) -> Any:
            return iter(())

    late = Trainer(Blind(), "late")  # type: ignore[arg-type]
    assert late.tend()
    assert late.lease.term == 10


def test_a_registry_that_was_emptied_ends_the_term(backend: Backend) -> None:
    first = Trainer(backend, "first")
    first.tend()
    fence = Fence.over(backend, 1)
    for path in (*terms(backend), BEAT):
        backend.delete(path)
    with pytest.raises(LeaseLost, match=r"gone .* emptied or restored"):
        fence.check()
    with pytest.raises(LeaseLost):
        first.tend()
    assert first.tend()


@pytest.mark.parametrize("path", [BEAT, f"{TERMS}/00000001.json"])
@pytest.mark.parametrize("content", [b"", b"{ half", b'{"schema": 2, "term": 1}', b"[]"])
def test_what_cannot_be_read_is_said(backend: Backend, path: str, content: bytes) -> None:
    Trainer(backend, "first").tend()
    backend.put(path, content)
    with pytest.raises(RegistryError, match=rf"{path} .* cannot be read.*stop all trainers"):
        Trainer(backend, "second").tend()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_holder_that_dies_at_any_write_is_succeeded(backend: Backend, after: bool) -> None:
    """And a holder whose store stumbles there goes on, where it can."""
    for number in itertools.count(1):
        earlier = [Trainer(backend, f"{number}-{place}-{after}") for place in range(KEPT + 2)]
        for trainer in earlier:
            trainer.tend()
            later(SECONDS, trainer)
            assert trainer.tend()
            trainer.lease.release()
        stumbling = Stumbling(backend, number, after=after)
        dying = Trainer(stumbling, f"{number}-dying-{after}")  # type: ignore[arg-type]
        # Of a write whose answer is lost it may find that it was done.
        with suppress(RegistryError):
            for _ in range(3):
                dying.tend()
            dying.lease.release()
        heir = Trainer(backend, f"{number}-heir-{after}")
        if not heir.tend():
            later(SECONDS, heir)
            assert heir.tend()
        Fence.over(backend, heir.lease.term).check()
        heir.lease.release()
        if not stumbling.stumbled:
            break
    assert number > 5


def test_a_create_whose_answer_was_lost_is_recognised(backend: Backend) -> None:
    class Repeating:
        """As a store's client does where it got no answer: the second try finds what the first one wrote."""

        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def put(self, path: str, file: bytes, *, mode: Any = None) -> object:
            if mode == "create":
                backend.put(path, file, mode=mode)
            return backend.put(path, file, mode=mode)

    first = Trainer(Repeating(), "first")  # type: ignore[arg-type]
    assert first.tend()
    assert not Trainer(backend, "second").tend()


# ── what it fences ──
def test_outside_its_term_a_registry_writes_promotes_and_removes_nothing(backend: Backend) -> None:
    first, second = Trainer(backend, "first"), Trainer(backend, "second")
    first.tend()
    fenced = Registry.over(backend, fence=Fence.over(backend, first.lease.term))
    put(fenced, "v1", "v2", "v3")
    fenced.promote("v1", number=1, reason="first", by=JUDGE)
    fenced.promote("v2", number=2, reason="second", by=JUDGE)
    second.tend()
    later(SECONDS, second)
    second.tend()
    for use in (
        lambda: fenced.write(card("v4"), FILES),
        lambda: fenced.promote("v3", number=3, reason="stale", by=JUDGE),
        lambda: fenced.rollback(by="ann", reason="stale"),
        lambda: fenced.collect(1),
    ):
        with pytest.raises(LeaseLost, match="second has taken term 2"):
            use()
    free = Registry.over(backend)
    assert free.versions() == ("v1", "v2", "v3")
    assert free.next_number() == 3
    assert fenced.champion() == free.champion()


# ── any order of events ──
EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["tend", "tend", "tend", "release", "restart", "wait", "promote"]),
        st.integers(0, 2),
        st.floats(0.5, 2 * SECONDS),
    ),
    min_size=10,
    max_size=60,
)


@given(EVENTS)
@settings(max_examples=120, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_happens_terms_have_one_holder_and_end_with_the_next(events: list[tuple[str, int, float]]) -> None:
    """Each contender acts whenever it likes, or never again; at no time are two sure to hold the lease."""
    backend = MemoryStore()
    names = itertools.count()

    def fresh() -> Trainer:
        return Trainer(backend, f"holder-{next(names)}", start=float(next(names)))

    trainers = [fresh(), fresh(), fresh()]
    owners: dict[int, str] = {}
    registry = Registry.over(backend)
    put(registry, "v1")
    promoted: list[int] = []
    for event, which, seconds in events:
        trainer = trainers[which]
        if event == "tend":
            try:
                trainer.tend()
            except LeaseLost:
                assert trainer.lease.term == 0
        elif event == "release":
            trainer.lease.release()
        elif event == "restart":
            trainers[which] = fresh()
        elif event == "wait":
            later(seconds, *trainers)
        elif trainer.lease.term:
            fenced = Registry.over(backend, fence=Fence.over(backend, trainer.lease.term))
            try:
                fenced.promote("v1", reason=str(trainer.lease.term), by=f"{len(promoted)}")
                promoted.append(trainer.lease.term)
            except LeaseLost:
                assert any(other.lease.term > trainer.lease.term for other in trainers) or max(owners) > (
                    trainer.lease.term
                )
        for each in trainers:
            if each.lease.term:
                owner = owners.setdefault(each.lease.term, each.lease._holder)
                assert owner == each.lease._holder
        assert sum(each.lease.held for each in trainers) <= 1
        assert sorted(owners) == list(range(1, len(owners) + 1))
    assert promoted == sorted(promoted), "no promotion of an ended term comes after one of a later term"
    assert [entry.number for entry in registry.promotions()] == list(range(1, len(promoted) + 1))
