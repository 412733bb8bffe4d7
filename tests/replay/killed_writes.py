"""A memory's life, cut off where a process can be killed: `killed_writes.py statements|files FOLDER EACH`.

`statements`: a child kills itself before the n-th SQL statement, for every n; the first ones make the database.
`files`: the files are put together as they are on disk after a part of each write. A log is written from front to back,
and pages are copied from it into the database in any case whole or again; so what a kill leaves is the front of the
new file and the rest of the old one.

Each time the memory is opened again, what it holds is named by the step after which it held the same (−1: after none),
and the life goes on from there. Of all places every EACH-th is tried. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from perdure.config import Settings
from perdure.memory import Quarantined
from perdure.records import Erasure, Feedback, Interaction, Record, encode
from perdure.stream.base import Entry, Page
from perdure_replay import ReplayMemory
from perdure_replay.store import FILE, Store

NOW = 1_700_000_000.0
LOG = f"{FILE}-wal"
HEADER, FRAME = 32, 24 + 4096
"""Bytes of the log's header, and of one page in it."""
HEAD = "head-000000000001-abc.safetensors"
Dump = dict[str, list[Any]]
Step = Callable[[ReplayMemory], object]


def said(number: int, text: str, label: str, subject: str | None = None) -> list[Record]:
    when = NOW + number
    return [
        Interaction(id=f"i{number}", text=text, time=when, subject=subject),
        Feedback(interaction=f"i{number}", label=label, time=when + 1),
    ]


EARLY: list[Record] = [
    *(record for n in range(8) for record in said(n, f"text {n}", "ab"[n % 2], "ann" if n < 3 else None)),
    Feedback(interaction="i3", label="a", time=NOW + 20),
    Feedback(interaction="late", label="b", time=NOW + 20),
]
LATE: list[Record] = [
    *said(10, "Text 4", "a"),
    *said(11, "another", "c", "bob"),
    Interaction(id="late", text="it came late", time=NOW + 19),
    Erasure(subject="bob", time=NOW + 30),
    *said(12, "text 5", "b"),
]
AGAIN = [*EARLY[:9], *LATE[2:]]


def page(records: Sequence[Record], start: int) -> Page:
    entries = [Entry("p", start + place, encode(record)) for place, record in enumerate(records)]
    entries.append(Entry("p", start + len(entries), b"not a record"))
    return Page(tuple(entries), {"p": start + len(entries)})


FIRST, SECOND = page(EARLY, 0), page(LATE, len(EARLY) + 1)


def ingest(found: Page) -> Step:
    return lambda memory: memory.ingest(found)


def embed(version: str, share: float) -> Step:
    def step(memory: ReplayMemory) -> None:
        keys = sorted(sample.key for sample in memory.samples())
        keys = keys[: round(len(keys) * share)]
        vectors = np.array([[int(key[:4], 16), int(key[4:8], 16), 1.0] for key in keys], dtype=np.float32)
        memory.embed(version, keys, vectors)

    return step


def point(memory: ReplayMemory) -> None:
    """What the learner does with deltas: a new file, and the pointer to it."""
    (Path(memory.folder) / HEAD).write_bytes(b"sums")
    memory.set_statistics(HEAD, through=memory.deltas(1000)[-1].sequence)


def doubt(memory: ReplayMemory) -> None:
    memory.quarantine([Quarantined(id="i5", reason="doubtful", text="text 5", label="b", time=NOW)])


LIFE: tuple[Step, ...] = (
    ingest(FIRST),
    embed("old", 1.0),
    lambda memory: memory.deltas(1000),
    point,
    lambda memory: memory.freeze(champion="v1", promotion=1),
    ingest(SECOND),
    doubt,
    lambda memory: memory.finish('{"turn": 1}'),
    # A promotion: all of memory is embedded anew, in two goes.
    embed("new", 0.5),
    embed("new", 1.0),
    lambda memory: memory.forget("ann", NOW + 100),
    lambda memory: memory.rebuild_statistics(),
)


def opened(folder: Path, **memory: Any) -> ReplayMemory:
    values = {"path": str(folder), "per_class": 3, **memory}
    settings = Settings().with_values({f"memory.{name}": value for name, value in values.items()})
    memory = ReplayMemory(settings, clock=lambda: NOW + 1000, provenance=2)
    # What is written, and in which order, stays; a process that is killed loses nothing of it.
    memory._store.rows("PRAGMA synchronous = OFF")
    return memory


def dump(memory: ReplayMemory) -> Dump:
    """Every row of every table but the memory's own random name, and the names of files that are pointed to."""
    tables = memory._store.rows("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    found = {name: sorted(map(repr, memory._store.rows(f"SELECT * FROM {name}"))) for (name,) in tables}
    identity = memory._store.state("identity")
    found["state"] = [row.replace(identity, "") for row in found["state"]]
    found["files"] = [name for name in (memory.statistics(), *memory.statistics_parts()) if name]
    assert all((Path(memory.folder) / name).is_file() for name in found["files"])
    return found


def whole(memory: ReplayMemory) -> None:
    """What is derived agrees with what it is derived from."""
    assert memory._store.value("PRAGMA integrity_check") == "ok"
    assert not memory._store.rows("PRAGMA foreign_key_check")
    for derived, table, column in (
        ("place_counts", "places", "label"),
        ("interaction_counts", "interactions", "partition"),
    ):
        counted = memory._store.rows(f"SELECT {column}, count(*) FROM {table} GROUP BY {column} ORDER BY 1")
        assert memory._store.rows(f"SELECT * FROM {derived} ORDER BY 1") == counted
    samples = {sample.key for sample in memory.samples()}
    known = memory.embedded("old") | memory.embedded("new")
    near = memory.neighbours(np.ones((1, 3), dtype=np.float32), 99).samples[0]
    assert {sample.key for sample in near} == known <= samples


def live(memory: ReplayMemory, done: int = 0) -> Dump:
    for step in LIFE[done:]:
        step(memory)
    return dump(memory)


def delivered_again(memory: ReplayMemory) -> Dump:
    """What is kept after records came once more, as after a stream was set back."""
    before = memory.digest(), memory.samples()
    memory.ingest(page(AGAIN, memory.offset()["p"]))
    assert (memory.digest(), memory.samples()) == before
    return dump(memory)


def states(folder: Path) -> tuple[list[Dump], Dump]:
    """What is held after opening, and after each step; and at the end with records delivered again."""
    with opened(folder) as memory:
        found = [dump(memory)]
        for step in LIFE:
            step(memory)
            found.append(dump(memory))
        whole(memory)
        return found, delivered_again(memory)


def resumed(folder: Path, known: list[Dump], last: Dump) -> int:
    """After which step the memory in `folder` was cut off; then it lives on to the end, which is that of the others."""
    with opened(folder) as memory:
        whole(memory)
        found = dump(memory)
        # A later one that is the same means that the step changed nothing.
        place = max((number for number, state in enumerate(known) if state == found), default=-1)
        assert live(memory, max(place, 0)) == known[-1]
        whole(memory)
        assert delivered_again(memory) == last
    return place


# ── before every statement ──
class Counting:
    """A connection that ends its process before the n-th statement."""

    def __init__(self, connection: Any, countdown: Iterator[int]) -> None:
        self._connection = connection
        self._countdown = countdown

    def _step(self) -> None:
        if next(self._countdown) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._connection, name)
        if name not in ("execute", "executemany", "executescript"):
            return attribute

        def run(sql: str, *values: Any) -> Any:
            # Parts of a script, and rows of a batch, are statements of their own.
            if name == "executescript":
                for statement in statements(sql):
                    self._step()
                    self._connection.execute(statement)
                return None
            if name == "executemany":
                for row in values[0]:
                    self._step()
                    self._connection.execute(sql, row)
                return None
            self._step()
            return attribute(sql, *values)

        return run


def statements(script: str) -> Iterator[str]:
    """The statements of a script, one after the other; a trigger is one."""
    statement = ""
    for part in script.split(";"):
        statement += part
        if statement.strip() and sqlite3.complete_statement(f"{statement};"):
            yield statement
            statement = ""
        else:
            statement += ";"


def killed_before(folder: Path, number: int) -> None:
    """Lives a life that ends before statement `number`."""
    countdown = iter(range(number - 1, -2, -1))
    connect = sqlite3.connect
    sqlite3.connect = lambda *values, **named: Counting(connect(*values, **named), countdown)  # type: ignore
    live(opened(folder))


def forked(work: Callable[[], object], folder: Path) -> tuple[int, Any]:
    """Wait status of a child that did `work`, and what that returned.

    This process itself never uses FAISS: its threads would not live on in a fork.
    """
    said = folder / "said.json"
    child = os.fork()
    if child == 0:
        try:
            said.write_text(json.dumps(work()), encoding="utf-8")
        except BaseException:  # noqa: BLE001 (a child of a fork must never return)
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), "the child failed"
    return status, json.loads(said.read_text(encoding="utf-8")) if status == 0 else None


# ── within every write to a file ──
@contextmanager
def watched(folder: Path, taken: list[Path]) -> Iterator[None]:
    """Takes a copy of the files before the log is emptied too."""
    checkpoint = Store.checkpoint

    def copied_before(store: Store) -> None:
        taken.append(copy(folder, len(taken)))
        checkpoint(store)

    Store.checkpoint = copied_before  # type: ignore[method-assign]
    try:
        yield
    finally:
        Store.checkpoint = checkpoint  # type: ignore[method-assign]


def copy(folder: Path, number: int) -> Path:
    to = folder.with_name(f"copy-{number}")
    shutil.copytree(folder, to, ignore=shutil.ignore_patterns("*-shm", "*.lock"))
    return to


def cuts(old: bytes, new: bytes, header: int, unit: int) -> list[int]:
    """Where the front of `new` may end: at the borders of pages that changed, and in the middle of each."""
    ends = [0, header, *range(header, max(len(old), len(new)), unit)]
    places = sorted({place for end in ends for place in (end, end + unit // 2)})
    return [place for place in places if place <= max(len(old), len(new)) and new[:place] + old[place:] != old]


def cut_copies(before: Path, after: Path, to: Path) -> Iterator[Path]:
    """The folder `to`, as it may be after a kill between the two copies."""
    old, new = ({name: read(folder / name) for name in (LOG, FILE)} for folder in (before, after))
    emptied = len(new[LOG]) < len(old[LOG])
    for name, header, unit in ((FILE, 0, 4096),) if emptied else ((LOG, HEADER, FRAME),):
        for place in cuts(old[name], new[name], header, unit):
            shutil.rmtree(to, ignore_errors=True)
            # Files of statistics come before they are pointed to, and go afterwards.
            for copied in (before, after):
                shutil.copytree(copied, to, dirs_exist_ok=True)
            # While pages are copied into the database the log is whole; while it grows the database stays.
            (to / FILE).write_bytes(old[FILE])
            (to / LOG).write_bytes(old[LOG])
            (to / name).write_bytes(new[name][:place] + old[name][place:])
            yield to


def read(file: Path) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def by_statements(folder: Path, each: int) -> list[int]:
    _, (known, last) = forked(lambda: states(folder / "clean"), folder)
    work = folder / "work"
    places = []
    for number in count(1, each):
        shutil.rmtree(work, ignore_errors=True)
        if forked(lambda number=number: killed_before(work, number), folder)[0] == 0:  # type: ignore[misc]
            return places
        places.append(forked(lambda: resumed(work, known, last), folder)[1])
    raise AssertionError("unreachable")


def by_files(folder: Path, each: int) -> list[int]:
    known, last = states(folder / "clean")
    work = folder / "work"
    taken: list[Path] = []
    with opened(work) as memory, watched(work, taken):
        taken.append(copy(work, 0))
        for step in LIFE:
            step(memory)
            taken.append(copy(work, len(taken)))
    cut = chain.from_iterable(cut_copies(*pair, folder / "cut") for pair in pairwise(taken))
    return [resumed(left, known, last) for number, left in enumerate(cut) if number % each == 0]


def main() -> None:
    part, folder, each = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    places = (by_statements if part == "statements" else by_files)(folder, each)
    print(json.dumps({"places": places, "steps": len(LIFE)}))


if __name__ == "__main__":
    main()
