"""One part of the benchmark in a process of its own: `python -m memories.child PART NAME TASK OUTCOME`.

Parts: `fill`, `settle` (what the right answers are), `answer`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from memories.base import Answering, Contestant
from memories.workload import Page, Size, Workload, exact, number_of, recall

PLACES: Mapping[str, str] = {
    "perdure": "memories.perdure_memory:Ingested",
    "perdure reservoir": "memories.perdure_memory:ReservoirAlone",
    "faiss flat": "memories.bare_faiss:Flat",
    "faiss float16": "memories.bare_faiss:Half",
    "faiss hnsw": "memories.bare_faiss:Graph",
    "avalanche uniform": "memories.avalanche_buffers:Uniform",
    "avalanche balanced": "memories.avalanche_buffers:Balanced",
    "renate uniform": "memories.renate_buffers:Uniform",
    "renate balanced": "memories.renate_buffers:Balanced",
}
"""Module and class of each contestant: what one imports, another's environment may lack."""
RESTS = 10
NEIGHBOURS = 10
TRUTH = "truth.json"
SAME = 100
"""Rows that are offered twice."""


@dataclass(frozen=True, slots=True)
class Task:
    """What a child process is given."""

    workload: str
    """Folder of the samples."""
    folder: str
    """Of this contestant alone."""
    size: Size
    limit: float
    """Seconds after which no more is offered."""
    source: str | None = None
    """Folder of the memory whose kept vectors are offered instead of the stream; for what keeps all it is given."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What filling took."""

    offered: int
    kept: int
    seconds: float
    """In offering, and nothing else."""
    cpu_seconds: float
    slowest_page_seconds: float
    rest_seconds: tuple[float, ...]
    """Of what is done now and then; for Perdure, a turn's part of the work."""
    save_seconds: float
    process_bytes: int
    """Growth of the process's own memory, files that it maps excepted."""
    disk_bytes: int
    twice: Mapping[str, int]
    """What is kept of rows that were offered twice."""
    details: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Answered:
    """What a fresh process took that opened it again."""

    resume_seconds: float
    """From opening to the first answer, or the first sample where there are no answers; imports excepted."""
    milliseconds: tuple[float, ...]
    """Of each query, one after the other."""
    milliseconds_again: tuple[float, ...]
    """Of the same ones once more, when what is derived on demand has been derived."""
    recall: float | None
    process_bytes: int


def fill(name: str, task: Task) -> Filled:
    """Offers everything, or what fits in the time limit."""
    known = twice(name, task)
    contestant = load(name, task)
    before = own_bytes()
    contestant.create()
    wall = cpu = slowest = 0.0
    offered = 0
    rests: list[float] = []
    pages = contestant.workload.pages(contestant.rows) if task.source is None else _kept(contestant, Path(task.source))
    for page in pages:
        prepared = contestant.prepare(page)
        began, used = time.perf_counter(), time.process_time()
        contestant.take(prepared)
        took = time.perf_counter() - began
        wall, cpu, slowest = wall + took, cpu + time.process_time() - used, max(slowest, took)
        offered += len(page.texts)
        if offered * RESTS // task.size.offered > len(rests):
            began = time.perf_counter()
            contestant.rest()
            rests.append(round(time.perf_counter() - began, 3))
        if wall > task.limit:
            break
    grown = own_bytes() - before
    began = time.perf_counter()
    kept = contestant.save()
    saved = time.perf_counter() - began
    disk = sum(file.stat().st_size for file in contestant.folder.rglob("*") if file.is_file())
    return Filled(offered, kept, wall, cpu, slowest, tuple(rests), saved, grown, disk, known, contestant.details())


def answer(name: str, task: Task) -> Answered:
    """Opens it again and asks, one query at a time."""
    contestant = load(name, task)
    queries = contestant.workload.queries
    before = own_bytes()
    began = time.perf_counter()
    contestant.open()
    if not isinstance(contestant, Answering):
        contestant.first()
        resumed, grown = time.perf_counter() - began, own_bytes() - before
        contestant.close()
        return Answered(resumed, (), (), None, grown)
    contestant.neighbours(queries[:1], NEIGHBOURS)
    resumed = time.perf_counter() - began
    found: list[set[int]] = []
    spent: list[float] = []
    for row in 2 * list(range(1, len(queries))):
        began = time.perf_counter()
        numbers = contestant.neighbours(queries[row : row + 1], NEIGHBOURS)
        spent.append(round(1000 * (time.perf_counter() - began), 3))
        found.append(set(numbers))
    asked = len(queries) - 1
    grown = own_bytes() - before
    contestant.close()
    truth = [set(row) for row in json.loads((Path(task.folder).parent / TRUTH).read_text(encoding="utf-8"))]
    return Answered(resumed, tuple(spent[:asked]), tuple(spent[asked:]), recall(found[:asked], truth[1:]), grown)


def settle(name: str, task: Task) -> None:
    """Writes which samples that memory kept, and the right neighbours among them."""
    contestant = load(name, task)
    contestant.open()
    if not isinstance(contestant, Answering):
        raise TypeError(f"{name} finds no neighbours: settle with one that does")
    numbers = np.asarray(sorted(contestant.kept()))
    contestant.close()
    np.save(Path(task.folder) / "numbers.npy", numbers)
    right = exact(contestant.workload.vectors[numbers], contestant.workload.queries, NEIGHBOURS)
    rows = [numbers[list(one)].tolist() for one in right]
    (Path(task.folder).parent / TRUTH).write_text(json.dumps(rows), encoding="utf-8")


def twice(name: str, task: Task) -> dict[str, int]:
    """Offers the same rows twice, as a stream delivers them again after a crash."""
    with TemporaryDirectory() as folder:
        contestant = load(name, replace(task, folder=folder))
        contestant.create()
        page = next(contestant.workload.pages(SAME))
        for _ in range(2):
            contestant.take(contestant.prepare(page))
        return {"offered": 2 * SAME, "different": len(set(map(number_of, page.texts))), "kept": contestant.save()}


def load(name: str, task: Task) -> Contestant:
    """The contestant of that name."""
    module, _, kind = PLACES[name].partition(":")
    contestant: Contestant = getattr(import_module(module), kind)(
        Path(task.folder), Workload(Path(task.workload), task.size)
    )
    return contestant


def own_bytes() -> int:
    """Bytes of memory that are this process's own; those of mapped files do not count."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def _kept(contestant: Contestant, source: Path) -> Iterator[Page]:
    numbers = np.load(source / "numbers.npy")
    np.save(contestant.folder / "numbers.npy", numbers)
    return contestant.workload.chosen(numbers, contestant.rows)


def main() -> None:
    part, name, said, written = sys.argv[1:]
    given = json.loads(Path(said).read_text(encoding="utf-8"))
    task = Task(**{**given, "size": Size(**given["size"])})
    if part == "settle":
        settle(name, task)
        return
    outcome = asdict(fill(name, task) if part == "fill" else answer(name, task))
    Path(written).write_text(json.dumps(outcome), encoding="utf-8")


if __name__ == "__main__":
    main()
