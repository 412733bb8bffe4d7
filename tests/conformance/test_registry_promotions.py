"""The log of promotions, rollbacks and retention: the same over every store."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from perdure.errors import RegistryError, StalePromotion, VersionNotFound
from perdure.registry import JUDGE, Promotion, Registry
from perdure.registry.store import Backend

from .registry_suite import FILES, STORES, card, log_of, put


@pytest.fixture(params=STORES)
def backend(request: pytest.FixtureRequest) -> Backend:
    make: Callable[[pytest.FixtureRequest], Backend] = request.param
    return make(request)


@pytest.fixture
def registry(backend: Backend) -> Registry:
    return Registry.over(backend)


# ── promotions ──
def test_the_champion_is_the_last_promotion(registry: Registry) -> None:
    assert registry.champion() is None
    assert registry.promotions() == ()
    assert registry.next_number() == 1
    put(registry, "v1", "v2")
    first = registry.promote("v1", reason="the first", by="ann")
    assert (first.number, first.version, first.by, first.reason, first.kind) == (1, "v1", "ann", "the first", "promote")
    second = registry.promote("v2", number=2, reason="better", by=JUDGE)
    assert registry.champion() == second
    assert registry.promotions() == (first, second)
    assert registry.promotions(1) == (second,)
    assert registry.promotions(limit=5) == (first, second)
    assert registry.next_number() == 3


@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 7, 8, 9, 31, 32, 33])
def test_the_next_number_is_found_without_listing(backend: Backend, length: int) -> None:
    writer = Registry.over(backend)
    put(writer, "v1")
    for number in range(length):
        writer.promote("v1", number=number + 1, reason=str(number), by="ann")
    asked: list[str] = []

    class Asking:
        def head(self, path: str) -> object:
            asked.append(path)
            return backend.head(path)

        def get(self, path: str) -> object:
            return backend.get(path)

    reader = Registry.over(Asking())  # type: ignore[arg-type]
    assert reader.next_number() == length + 1
    assert len(asked) <= 12
    asked.clear()
    assert reader.next_number() == length + 1
    assert len(asked) <= 2
    writer.promote("v1", number=length + 1, reason="one more", by="ann")
    assert reader.next_number() == length + 2
    champion = reader.champion()
    assert champion is not None
    assert champion.reason == "one more"


def test_a_log_that_was_emptied_is_noticed(registry: Registry, backend: Backend) -> None:
    put(registry, "v1")
    for number in range(3):
        registry.promote("v1", reason=str(number), by="ann")
    for number in range(3):
        backend.delete(f"promotions/{number + 1:08d}.json")
    assert registry.next_number() == 1
    assert registry.champion() is None
    registry.promote("v1", reason="anew", by="ann")
    assert [entry.reason for entry in registry.promotions()] == ["anew"]


def test_a_stale_promoter_fails(registry: Registry, backend: Backend) -> None:
    put(registry, "v1", "v2", "v3")
    registry.promote("v1", reason="", by="ann")
    number = registry.next_number()
    Registry.over(backend).promote("v2", reason="quicker", by="bob")
    with pytest.raises(StalePromotion, match=r"promotion 2 to v3 came too late: bob .* promoted v2 \(quicker\)"):
        registry.promote("v3", number=number, reason="slow", by=JUDGE)
    assert log_of(registry) == ["v1", "v2"]


def test_promoting_the_same_again_after_a_crash_changes_nothing(registry: Registry, backend: Backend) -> None:
    put(registry, "v1", "v2")
    first = registry.promote("v1", number=1, reason="r", by=JUDGE)
    registry.promote("v2", number=2, reason="r", by="ann")
    assert Registry.over(backend).promote("v1", number=1, reason="r", by=JUDGE) == first
    for other in ({"reason": "x", "by": JUDGE}, {"reason": "r", "by": "bob"}):
        with pytest.raises(StalePromotion):
            registry.promote("v1", number=1, **other)
    assert log_of(registry) == ["v1", "v2"]


@pytest.mark.parametrize("number", [0, -1, 3, 50])
def test_a_number_off_the_end_of_the_log_is_refused(registry: Registry, number: int) -> None:
    put(registry, "v1")
    registry.promote("v1", reason="", by="ann")
    with pytest.raises(RegistryError, match=rf"promotion {number} cannot be written: the next number .* is 2"):
        registry.promote("v1", number=number, reason="", by="ann")
    assert log_of(registry) == ["v1"]


def test_without_a_number_the_next_free_one_is_taken(backend: Backend) -> None:
    writer = Registry.over(backend)
    put(writer, "v1", "v2")

    class Overtaken:
        """Somebody else is quicker, once."""

        quicker = True

        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

        def put(self, path: str, file: bytes, *, mode: object = None) -> object:
            if self.quicker:
                self.quicker = False
                writer.promote("v2", reason="quicker", by="bob")
            return backend.put(path, file, mode=mode)

    entry = Registry.over(Overtaken()).promote("v1", reason="by hand", by="ann")  # type: ignore[arg-type]
    assert entry.number == 2
    assert log_of(writer) == ["v2", "v1"]


@pytest.mark.parametrize("promoters", [8])
def test_of_many_who_promote_at_once_exactly_one_wins(backend: Backend, promoters: int) -> None:
    put(Registry.over(backend), "v1")
    start = threading.Barrier(promoters)
    won: list[Promotion] = []
    lost: list[StalePromotion] = []

    def promote(name: str) -> None:
        own = Registry.over(backend)
        start.wait()
        for number in range(1, 6):
            try:
                won.append(own.promote("v1", number=number, reason="race", by=name))
            except StalePromotion as error:
                lost.append(error)

    threads = [threading.Thread(target=promote, args=(f"p{number}",)) for number in range(promoters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(entry.number for entry in won) == [1, 2, 3, 4, 5]
    assert len(lost) == 5 * (promoters - 1)
    assert sorted(won, key=lambda entry: entry.number) == list(Registry.over(backend).promotions())


def test_without_numbers_everybody_gets_in_once(backend: Backend) -> None:
    put(Registry.over(backend), "v1")

    def promote(name: str) -> None:
        for turn in range(5):
            Registry.over(backend).promote("v1", reason=str(turn), by=name)

    threads = [threading.Thread(target=promote, args=(f"p{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    entries = Registry.over(backend).promotions()
    assert len(entries) == len({(entry.by, entry.reason) for entry in entries}) == 20


# ── the log on bad days ──
@pytest.mark.parametrize("content", [b"", b"{ half", b"[]", b'{"number": 2}', b'{"number": "x"}'])
def test_an_unreadable_entry_is_named(registry: Registry, backend: Backend, content: bytes) -> None:
    put(registry, "v1")
    registry.promote("v1", reason="", by="ann")
    backend.put("promotions/00000002.json", content)
    with pytest.raises(RegistryError, match=r"promotions/00000002\.json .* cannot be read"):
        registry.champion()


def test_an_entry_of_a_newer_schema_is_refused(registry: Registry, backend: Backend) -> None:
    backend.put("promotions/00000001.json", b'{"schema": 2, "who": "knows"}')
    with pytest.raises(RegistryError, match=r"promotion 1 has schema 2, newer than the 1 .*upgrade"):
        registry.champion()


def test_an_entry_under_the_wrong_number_is_refused(registry: Registry, backend: Backend) -> None:
    put(registry, "v1")
    registry.promote("v1", reason="", by="ann")
    backend.put("promotions/00000002.json", bytes(backend.get("promotions/00000001.json").bytes()))
    with pytest.raises(RegistryError, match=r"00000002\.json .* is promotion 1"):
        registry.champion()


# ── rolling back ──
def test_rolling_back_goes_further_each_time(registry: Registry) -> None:
    put(registry, "v1", "v2", "v3")
    for version in ("v1", "v2", "v2", "v3"):
        registry.promote(version, reason="", by="ann")
    back = registry.rollback(by="bob", reason="bad answers")
    assert (back.number, back.version, back.kind, back.by, back.reason) == (5, "v2", "rollback", "bob", "bad answers")
    assert registry.champion() == back
    assert registry.rolled_back() == {"v3"}
    assert registry.rollback(by="bob", reason="worse").version == "v1"
    assert registry.rolled_back() == {"v2", "v3"}
    with pytest.raises(RegistryError, match="no champion before v1"):
        registry.rollback(by="bob", reason="")
    assert log_of(registry) == ["v1", "v2", "v2", "v3", "v2", "v1"]


def test_rolling_back_after_a_new_promotion_skips_what_was_rolled_back(registry: Registry) -> None:
    put(registry, "v1", "v2", "v3", "v4")
    for version in ("v1", "v2"):
        registry.promote(version, reason="", by="ann")
    registry.rollback(by="bob", reason="")
    registry.promote("v3", reason="", by="ann")
    assert registry.rollback(by="bob", reason="").version == "v1"
    assert registry.rolled_back() == {"v2", "v3"}
    registry.promote("v4", reason="", by="ann")
    assert [registry.rollback(by="bob", reason="x").version] == ["v1"]
    with pytest.raises(RegistryError, match="no champion before"):
        registry.rollback(by="bob", reason="")


def test_a_version_that_a_rollback_returns_to_is_no_longer_rolled_back(registry: Registry) -> None:
    put(registry, "v1", "v2")
    for version in ("v1", "v2", "v1"):
        registry.promote(version, reason="", by="ann")
    assert registry.rollback(by="bob", reason="").version == "v2"
    assert registry.rolled_back() == {"v1"}
    assert registry.rollback(by="bob", reason="worse").version == "v1"
    assert registry.rolled_back() == {"v2"}


def test_rolling_back_an_empty_log_is_refused(registry: Registry) -> None:
    with pytest.raises(RegistryError, match="nothing was ever promoted"):
        registry.rollback(by="bob", reason="")


def test_rolling_back_skips_versions_that_cannot_be_served(registry: Registry, backend: Backend) -> None:
    put(registry, "v1", "v2", "v3", "v4")
    for version in ("v1", "v2", "v3", "v4"):
        registry.promote(version, reason="", by="ann")
    backend.delete("versions/v3/labels.json")
    backend.delete("versions/v2/card.json")
    assert registry.rollback(by="bob", reason="").version == "v1"
    assert registry.rolled_back() == {"v4"}


def test_two_who_roll_back_at_once_roll_back_once(backend: Backend) -> None:
    writer = Registry.over(backend)
    put(writer, "v1", "v2", "v3")
    for version in ("v1", "v2", "v3"):
        writer.promote(version, reason="", by="ann")

    class Overtaken:
        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

        def put(self, path: str, file: bytes, *, mode: object = None) -> object:
            writer.rollback(by="ann", reason="alarm")
            return backend.put(path, file, mode=mode)

    with pytest.raises(StalePromotion):
        Registry.over(Overtaken()).rollback(by="bob", reason="alarm")  # type: ignore[arg-type]
    assert log_of(writer) == ["v1", "v2", "v3", "v2"]


def test_the_judge_does_not_promote_what_was_rolled_back_until_a_person_does(registry: Registry) -> None:
    put(registry, "v1", "v2", "v3")
    registry.promote("v1", reason="", by=JUDGE)
    registry.promote("v2", reason="", by=JUDGE)
    registry.rollback(by="bob", reason="bad")
    for number in (None, registry.next_number()):
        with pytest.raises(RegistryError, match=r"v2 was rolled back: the judge .*perdure promote v2"):
            registry.promote("v2", number=number, reason="", by=JUDGE)
    registry.promote("v3", reason="", by=JUDGE)
    assert registry.rolled_back() == {"v2"}
    registry.promote("v2", reason="it was not its fault", by="ann")
    assert registry.rolled_back() == frozenset()
    registry.promote("v1", reason="", by=JUDGE)
    assert registry.promote("v2", reason="", by=JUDGE).number == 7


# ── retention ──
def names(*numbers: int) -> list[str]:
    return [f"v{number:06d}-head" for number in numbers]


def test_collect_keeps_the_newest_champions_and_parents(registry: Registry, backend: Backend) -> None:
    parents = {12: 3, 5: 2, 3: 1}
    for number in range(1, 13):
        parent = parents.get(number)
        registry.write(card(*names(number), parent=names(parent)[0] if parent else None), FILES)
    for number in (4, 5, 6):
        registry.promote(*names(number), reason="", by="ann")
    assert list(registry.collect(retain=2)) == names(1, 4, 7, 8, 9, 10)
    # 11, 12: newest; 3: parent of 12; 5, 6: last two promotions; 2: parent of 5.
    assert list(registry.versions()) == names(2, 3, 5, 6, 11, 12)
    left = {found["path"].split("/")[1] for batch in backend.list("versions") for found in batch}
    assert left == set(names(2, 3, 5, 6, 11, 12))
    assert registry.collect(retain=2) == ()
    assert registry.promotions()[0].version == names(4)[0]


def test_collect_keeps_the_champion_and_what_a_rollback_returns_to(registry: Registry) -> None:
    put(registry, *names(1, 2, 3, 4, 5, 6))
    for number in (2, 1, 4):
        registry.promote(*names(number), reason="", by="ann")
    registry.rollback(by="bob", reason="")
    for _ in range(3):
        registry.promote(*names(1), reason="again", by="ann")
    assert list(registry.collect(retain=1)) == names(3, 4, 5)
    assert registry.rollback(by="bob", reason="").version == names(2)[0]


def test_collect_keeps_the_champions_of_as_many_promotions(registry: Registry) -> None:
    put(registry, *names(1, 2, 3, 4, 5, 6, 7, 8))
    for number in (1, 2, 3, 4):
        registry.promote(*names(number), reason="", by="ann")
    assert list(registry.collect(retain=3)) == names(1, 5)


def test_collect_before_the_first_promotion(registry: Registry) -> None:
    put(registry, *names(1, 2, 3))
    assert list(registry.collect(retain=2)) == names(1)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        registry.collect(retain=0)


def test_collect_deletes_the_card_first(backend: Backend) -> None:
    writer = Registry.over(backend)
    for name in names(1, 2):
        writer.write(card(name), {"a": b"a store that lists in order lists this first", **FILES})
    deleted: list[str] = []

    class Dying:
        """The process is killed at the third deletion."""

        def __getattr__(self, name: str) -> object:
            return getattr(backend, name)

        def delete(self, path: str) -> None:
            if len(deleted) == 2:
                raise KeyboardInterrupt
            deleted.append(path)
            backend.delete(path)

    with pytest.raises(KeyboardInterrupt):
        Registry.over(Dying()).collect(retain=1)  # type: ignore[arg-type]
    assert deleted[0] == "versions/v000001-head/card.json"
    assert list(writer.versions()) == names(2)
    with pytest.raises(VersionNotFound):
        writer.read("v000001-head", "labels.json")


def test_leftovers_go_when_they_are_old(registry: Registry, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    put(registry, "v1")
    backend.put("versions/v0/labels.json", b"left by a killed writer")
    assert registry.collect(retain=1) == ()
    assert bytes(backend.get("versions/v0/labels.json").bytes()) == b"left by a killed writer"
    monkeypatch.setattr("perdure.registry.versions.LEFTOVER_SECONDS", -1)
    assert registry.collect(retain=1) == ()
    with pytest.raises(FileNotFoundError):
        backend.get("versions/v0/labels.json")
    assert registry.versions() == ("v1",)
    assert registry.read("v1", "labels.json") == b"[]"
