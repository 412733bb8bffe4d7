"""One memory made of shards: of memories that each were fed some partitions of one stream.

It holds what one memory fed with all of it would hold, for time limits and bounds on rows are those of each partition.
Exactly so as long as every interaction's records lie in one partition. Where the number of partitions grew, this holds:

- Feedback in one shard finds an interaction of another if their times are within the time limit of each other, and one
  assembly sees both before their shards have let go of them; from then on it stays joined. An interaction that two
  shards have is one on the same condition. Of two texts under one id the earlier stays, wherever it was read first.
- A shard that rebuilt its statistics counted each of its living samples once, so that one which is alive in two shards
  counts twice. An erasure that one shard let go of by its time before another has read it is carried out there later,
  when that shard reads it.
- Of the totals, joined labels, corrections, repetitions and what expired are as the shards counted them, with what was
  joined here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from perdure.errors import StoreCorrupt, UsageError
from perdure.memory import Assembled
from perdure_replay.intake import Intake
from perdure_replay.join import COLUMNS
from perdure_replay.split import Shard
from perdure_replay.statistics import PREFIX
from perdure_replay.store import STATISTICS, Store

REPLACED = ("interactions", "waiting", "places", "offsets", "partitions", "totals", "shards")
"""Tables that hold what came from shards, and nothing else."""


@contextmanager
def opened(folders: Sequence[Path], intake: Intake) -> Iterator[tuple[Shard, ...]]:
    """The shards in `folders`, each in one state, ordered by partition, after it was checked that they fit.

    Raises:
        UsageError: none; another key or half-life; a partition twice, or missing that was there before; statistics of
            different feature spaces; or this memory ingests a stream itself.
        StoreCorrupt: a shard cannot be read, or its file of statistics is missing.
    """
    if not folders:
        raise UsageError("there are no shards to assemble: let the ingesters write their first snapshots")
    with ExitStack() as stack:
        shards = []
        for folder in folders:
            source = Store(Path(folder), read_only=True)
            stack.callback(source.close)
            stack.enter_context(source.snapshot())
            shards.append(_shard(source, intake))
        shards.sort(key=lambda shard: (shard.partitions, shard.identity))
        _check(shards, intake)
        yield tuple(shards)


def _shard(source: Store, intake: Intake) -> Shard:
    found = source.rows("SELECT hash_key, half_life, identity, rebuilt, statistics FROM state")
    if not found:
        raise StoreCorrupt(f"the memory {source.folder} does not know its own key: take another snapshot of it")
    key, half_life, identity, rebuilt, statistics = found[0]
    if key != intake.store.state("hash_key") or half_life != intake.store.state("half_life"):
        raise UsageError(
            f"the memory {source.folder} has another key or half-life: make shards with one seed and one half-life"
        )
    if statistics is not None and not (source.folder / STATISTICS / statistics).is_file():
        raise StoreCorrupt(
            f"the shard {source.folder} lacks its file {STATISTICS}/{statistics}: take another snapshot of it"
        )
    partitions = tuple(name for (name,) in source.rows("SELECT partition FROM offsets ORDER BY partition"))
    return Shard(source, identity, rebuilt, statistics, partitions)


def _check(shards: Sequence[Shard], intake: Intake) -> None:
    store = intake.store
    before = {name for (name,) in store.rows("SELECT partition FROM offsets")}
    if before and not store.rows("SELECT 1 FROM shards"):
        raise UsageError(
            f"the memory {store.folder} has ingested a stream itself, which shards would replace: "
            "set memory.path to a new folder"
        )
    identities = {store.state("identity")}
    partitions: set[str] = set()
    spaces: dict[str, Path] = {}
    for shard in shards:
        if shard.identity in identities or not partitions.isdisjoint(shard.partitions):
            raise UsageError(
                f"the shard {shard.store.folder} or its partitions {list(shard.partitions)} are given already: "
                "give each partition's newest snapshot once"
            )
        identities.add(shard.identity)
        partitions.update(shard.partitions)
        if shard.statistics is not None:
            spaces.setdefault(shard.statistics.rpartition("-")[2], shard.store.folder)
    if len(spaces) > 1:
        raise UsageError(
            f"the shards' statistics are sums of different features ({', '.join(map(str, spaces.values()))} differ): "
            "give all ingesters the same model settings and seed, and let each write a snapshot"
        )
    if missing := before - partitions:
        raise UsageError(
            f"the shards lack the partitions {sorted(missing)} that this memory was assembled from before: "
            "give the newest snapshot of every partition"
        )


def part_name(shard: Shard) -> str:
    """What the shard's file of statistics is called in the assembled memory's folder."""
    return f"part-{shard.identity}-{(shard.statistics or '').removeprefix(PREFIX)}"


def assemble(shards: Sequence[Shard], intake: Intake) -> Assembled:
    """Replaces what came from shards by what `shards` hold, inside the caller's transaction."""
    store = intake.store
    before: dict[str, int] = dict(store.rows("SELECT identity, rebuilt FROM shards"))
    known: dict[bytes, float] = dict(store.rows("SELECT subject, until FROM erasures"))
    marks = store.rows("SELECT id, learned FROM interactions WHERE seen = 1")
    embeddings = store.rows(
        """
        SELECT e.place, e.version, e.vector, s.text FROM embeddings e JOIN places p ON p.key = e.place
        JOIN provenance s ON s.place = p.key AND s.hash = p.source
        """
    )
    intake.statistics.restart([part_name(shard) for shard in shards if shard.statistics is not None])
    for table in (*REPLACED, "quarantine WHERE own = 0"):
        store.write(f"DELETE FROM {table}")
    store.set_state(evicted_subjects=0, rebuild_due=0, quarantine_dropped=store.state("own_dropped"))
    totals: Counter[str] = Counter()
    doubled: set[str] = set()
    for shard in shards:
        doubled |= _copy(shard, intake, totals)
    totals.update(intake.split.join(shards, before, doubled, intake.join.ttl))
    intake.reservoir.settle()
    late = _erase(shards, intake, known)
    expired = intake.join.prune(name for shard in shards for name in shard.partitions)
    totals["expired"] += expired
    intake.quarantine.prune()
    store.add_totals({name: count for name, count in totals.items() if name != "waiting"})
    store.write_all(
        """
        UPDATE interactions SET seen = 1, learned = iif(erased, NULL, ?2), fresh = NOT erased AND label IS NOT ?2
        WHERE id = ?1
        """,
        marks,
    )
    intake.reservoir.embed_again(embeddings)
    return Assembled(
        shards=len(shards),
        samples=store.value("SELECT count(*) FROM places WHERE living = 1"),
        split=store.value("SELECT count(DISTINCT interaction) FROM split_parts"),
        erasures=late,
        expired=expired,
    )


def _copy(shard: Shard, intake: Intake, totals: Counter[str]) -> set[str]:
    """Adds what `shard` holds to what is here; returns the interactions that were here already."""
    store, source = intake.store, shard.store
    doubled: set[str] = set()
    store.write("INSERT INTO shards VALUES (?, ?)", (shard.identity, shard.rebuilt))
    for rows in source.each(f"SELECT {COLUMNS} FROM interactions"):
        doubled.update(
            identifier
            for (identifier,) in store.rows_in("SELECT id FROM interactions WHERE id IN ({})", [row[0] for row in rows])
        )
        marks = ",".join("?" * len(rows[0]))
        store.write_all(f"INSERT OR IGNORE INTO interactions ({COLUMNS}) VALUES ({marks})", rows)
    for table in ("waiting", "offsets", "partitions"):
        for rows in source.each(f"SELECT * FROM {table}"):
            marks = ",".join("?" * len(rows[0]))
            store.write_all(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", rows)
    for rows in source.each("SELECT key, label, score, time, support FROM places"):
        intake.reservoir.add_places(rows)
    for rows in source.each("SELECT place, hash, interaction, subject, made, time, backs, text FROM provenance"):
        intake.reservoir.add_provenance(rows)
    for rows in source.each("SELECT interaction, subject, made, text, label, sign FROM deltas ORDER BY sequence"):
        intake.statistics.copy(rows)
    for rows in source.each("SELECT id, time, reason, text, label, subject FROM quarantine"):
        store.write_all(
            "INSERT OR IGNORE INTO quarantine (id, time, reason, text, label, subject) VALUES (?, ?, ?, ?, ?, ?)", rows
        )
    totals.update(dict(source.rows("SELECT name, value FROM totals")))
    store.write("UPDATE state SET quarantine_dropped = quarantine_dropped + ?", (source.state("quarantine_dropped"),))
    return doubled


def _erase(shards: Sequence[Shard], intake: Intake, known: dict[bytes, float]) -> int:
    """Carries out the erasures that not every shard, or not this memory, has carried out; returns their number."""
    store, join = intake.store, intake.join
    heard: list[dict[bytes, float]] = [
        known,
        *(dict(shard.store.rows("SELECT subject, until FROM erasures")) for shard in shards),
    ]
    until: dict[bytes, float] = {}
    for one in heard:
        for subject, time in one.items():
            until[subject] = max(time, until.get(subject, time))
    # Every shard that has heard of an older one may have let go of it by now.
    until = {subject: time for subject, time in until.items() if time >= join.over()}
    store.write_all(
        "INSERT INTO erasures VALUES (?, ?) ON CONFLICT DO UPDATE SET until = max(until, excluded.until)",
        until.items(),
    )
    late = {
        subject: time for subject, time in until.items() if any(one.get(subject, -float("inf")) < time for one in heard)
    }
    for subject, time in late.items():
        intake.erase(subject, time)
    evicted = [bool(shard.store.state("evicted_subjects")) for shard in shards]
    # A shard that let go of interactions can take an erasure that it has not heard of out of its sums only as a whole.
    owing = any(
        lost and any(one.get(subject, -float("inf")) < time for subject, time in late.items())
        for lost, one in zip(evicted, heard[1:], strict=True)
    )
    store.set_state(
        evicted_subjects=int(any(evicted)),
        rebuild_due=int(owing or any(shard.store.state("rebuild_due") for shard in shards)),
    )
    return len(late)
