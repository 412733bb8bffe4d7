"""Several processes over one registry, in a folder and in a bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import StalePromotion, VersionNotFound
from perdure.registry import Card, EncoderCard, Registry

PROMOTER = """
import sys
from perdure.errors import StalePromotion
from perdure.registry import Registry
registry = Registry(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
for number in range(1, 31):
    try:
        registry.promote("v1", number=number, reason="race", by=sys.argv[2])
        print(number, flush=True)
    except StalePromotion:
        pass
"""

WRITER = """
import sys
from perdure.registry import Card, EncoderCard, Registry
registry = Registry(sys.argv[1])
for number in range(10_000):
    encoder = EncoderCard(name="m", fingerprint="f")
    card = Card(name=f"v{number:06d}", kind="first", encoder=encoder, labels=("a",) * 500)
    registry.write(card, {"head": b"w" * 20_000})
    registry.promote(card.name, number=number + 1, reason="", by="writer")
    print(number, flush=True)
"""


def card(name: str) -> Card:
    return Card(name=name, kind="first", encoder=EncoderCard(name="m", fingerprint="f"), labels=("label",) * 2000)


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_of_processes_that_promote_at_once_exactly_one_wins(place: Any) -> None:
    Registry(place.url).write(card("v1"), {"head": b"w"})
    processes = {name: start(PROMOTER, place.url, name) for name in ("p", "q", "r")}
    for process in processes.values():
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes.values():
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    won: dict[int, str] = {}
    for name, process in processes.items():
        for number in process.communicate(timeout=60)[0].split():
            assert int(number) not in won
            won[int(number)] = name
        assert process.returncode == 0
    assert sorted(won) == list(range(1, 31))
    assert {entry.number: entry.by for entry in Registry(place.url).promotions()} == won


@pytest.mark.parametrize("after", [1, 12])
def test_a_killed_writer_leaves_whole_versions_and_can_go_on(place: Any, after: int) -> None:
    process = start(WRITER, place.url)
    assert process.stdout is not None
    for _ in range(after):
        process.stdout.readline()
    process.kill()
    done = after + len(process.communicate(timeout=30)[0].split())
    registry = Registry(place.url)
    assert len(registry.promotions()) in (done, done + 1)
    for name in registry.versions():
        assert registry.read(name, "head") == b"w" * 20_000
        assert len(registry.card(name).labels) == 500
    champion = registry.champion()
    assert champion is not None
    assert champion.version in registry.versions()
    registry.write(card("v999999"), {"head": b"w"})
    assert registry.promote("v999999", reason="on we go", by="ann").number == champion.number + 1


def test_nobody_ever_reads_half_a_card_or_half_a_promotion(place: Any) -> None:
    stop = threading.Event()
    failures: list[BaseException] = []
    seen = {"cards": 0, "promotions": 0}

    def read() -> None:
        registry = Registry(place.url)
        number = 0
        try:
            while not stop.is_set():
                try:
                    assert len(registry.card(f"v{number:06d}").labels) == 2000
                    seen["cards"] += 1
                    number += 1
                except VersionNotFound:
                    pass
                seen["promotions"] += registry.champion() is not None
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must see it
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    writer = Registry(place.url)
    for number in range(60):
        writer.write(card(f"v{number:06d}"), {"head": b"w"})
        writer.promote(f"v{number:06d}", number=number + 1, reason="x" * 5000, by="ann")
    stop.set()
    for reader in readers:
        reader.join(timeout=30)
    assert failures == []
    assert min(seen.values()) > 0


def test_what_was_written_is_synced_to_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def watch(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").resolve().relative_to(tmp_path).as_posix())
        real(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see what is synced")
    registry = Registry(str(tmp_path / "r"))
    monkeypatch.setattr(os, "fsync", watch)
    registry.write(card("v1"), {"head": b"w"})
    registry.promote("v1", number=1, reason="", by="ann")
    assert {"r/versions/v1/head", "r/versions/v1/card.json", "r/versions/v1", "r/versions"} <= set(synced)
    assert {"r/promotions/00000001.json", "r/promotions", "r"} <= set(synced)
    assert synced.index("r/versions/v1/head") < synced.index("r/versions/v1/card.json")


def test_a_promotion_is_one_readable_json_object(place: Any) -> None:
    registry = Registry(place.url)
    registry.write(card("v1"), {"head": b"w"})
    registry.promote("v1", number=1, reason="the first", by="ann")
    fields = json.loads(bytes(place.backend.get("promotions/00000001.json").bytes()))
    assert fields["schema"] == 1
    assert (fields["number"], fields["version"], fields["by"], fields["reason"]) == (1, "v1", "ann", "the first")
    with pytest.raises(StalePromotion):
        registry.promote("v1", number=1, reason="another", by="bob")
