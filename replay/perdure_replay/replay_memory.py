"""The replay memory: `perdure.memory.Memory` over one SQLite database."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Self

from perdure.config import Settings
from perdure.errors import SettingError, StoreBusy, StoreFull, UsageError
from perdure.memory import (
    Assembled,
    Delta,
    Forgotten,
    IngestCounts,
    MemoryCounts,
    Neighbours,
    Quarantined,
    Row,
    TurnState,
)
from perdure.records import Float, Sample, new_id, now
from perdure.stream.base import Offset, Page
from perdure_replay.counts import counts
from perdure_replay.intake import Intake
from perdure_replay.join import Join
from perdure_replay.priority import Priorities, key_from_seed
from perdure_replay.quarantine import Quarantine
from perdure_replay.reservoir import PROVENANCE, Reservoir
from perdure_replay.samples import Samples
from perdure_replay.shards import assemble, opened, part_name
from perdure_replay.split import Split
from perdure_replay.statistics import Statistics
from perdure_replay.store import BUSY_TIMEOUT, FILE, STATISTICS, Store
from perdure_replay.turns import Turns
from perdure_replay.views import Views

SNAPSHOT_TRIES = 5
"""Copies that are begun before a writer that replaces files faster than they are copied is an error."""

COUNTED = frozenset(field.name for field in fields(IngestCounts)) - {"waiting"}


class ReplayMemory:
    """One memory, opened for writing by one process at a time, or for reading beside the writer.

    A reader sees what was committed last; its methods that write raise UsageError.
    Each method that changes it is one transaction. It may be used from any thread, by one at a time.

    Raises:
        StoreBusy: another process writes it.
        StoreCorrupt: its database cannot be read.
        UsageError: the folder cannot be used, or was written by a newer version.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        read_only: bool = False,
        clock: Callable[[], float] = now,
        busy_timeout: float = BUSY_TIMEOUT,
        provenance: int = PROVENANCE,
    ) -> None:
        self._settings = settings.memory
        self._store = Store(Path(self._settings.path), read_only=read_only, busy_timeout=busy_timeout)
        self._looked: int | None = None
        """What `Store.data_version` was when the views were derived."""
        try:
            if not read_only:
                self._create(settings.seed)
            half_life = self._store.state("half_life") if read_only else self._settings.half_life_days
            self._priorities = Priorities(self._store.state("hash_key"), half_life)
            self._reservoir = Reservoir(self._store, self._priorities, self._settings, provenance=provenance)
            self._statistics = Statistics(self._store)
            self._quarantine = Quarantine(self._store, self._priorities, self._settings.quarantine_rows)
            self._turns = Turns(self._store, self._settings)
            self._intake = Intake(
                store=self._store,
                priorities=self._priorities,
                join=Join(self._store, self._priorities, self._reservoir, self._statistics, self._settings),
                reservoir=self._reservoir,
                statistics=self._statistics,
                quarantine=self._quarantine,
                turns=self._turns,
                split=Split(self._store, self._priorities, self._reservoir, self._statistics),
                clock=clock,
            )
            self._views = Views(self._store, self._settings.near_duplicate, settings.device)
            self._samples = Samples(self._store, self._views, self._settings.holdout_share, decays=half_life > 0)
            if not read_only:
                self._statistics.folder.mkdir(exist_ok=True)
                self._adopt()
        except BaseException:
            self._store.close()
            raise

    def _create(self, seed: int) -> None:
        """Gives a new memory its key and its name; an old one keeps them, whatever the seed."""
        if self._store.rows("SELECT 1 FROM state"):
            return
        with self._store.transaction():
            self._store.write(
                "INSERT INTO state (only, hash_key, half_life, identity) VALUES (1, ?, ?, ?)",
                (key_from_seed(seed), self._settings.half_life_days, new_id()),
            )

    def _adopt(self) -> None:
        """Brings what is kept under the present settings.

        Raises:
            SettingError: more is to be held out than before.
        """
        least, share = self._store.state("holdout_share"), self._settings.holdout_share
        if least is not None and share > least:
            raise SettingError(
                f"memory.holdout_share is {share:g}, but in the memory {self._store.folder} it was {least:g}: "
                f"what lies between was trained on and is no evidence. Set it to {least:g} or less, or memory.path "
                "to a new folder"
            )
        if least != share:
            with self._store.transaction():
                self._store.set_state(holdout_share=share)
        if self._store.state("half_life") != self._settings.half_life_days:
            with self._store.transaction():
                self._reservoir.rescore()
                self._store.set_state(half_life=self._settings.half_life_days)
        elif self._reservoir.excessive:
            with self._store.transaction():
                self._reservoir.trim()

    @contextmanager
    def _look(self) -> Iterator[None]:
        """One state for all reads inside; a reader derives views anew when the writer has committed something."""
        with self._store.snapshot():
            if self._store.read_only and (version := self._store.data_version()) != self._looked:
                self._views.drop()
                self._looked = version
            yield

    @contextmanager
    def _change(self) -> Iterator[None]:
        self._views.drop()
        with self._store.transaction():
            yield

    # ── the stream ──
    def offset(self) -> Offset:
        return self._turns.offset()

    def ingest(self, page: Page) -> IngestCounts:
        """Joins the page's records; samples, join state, quarantine and offset change in one transaction.

        What cannot be read, lies more than a day ahead of the clock, or has another interaction's id is quarantined.

        Raises:
            UsageError: this memory was assembled from shards.
        """
        if self._store.rows("SELECT 1 FROM shards LIMIT 1"):
            raise UsageError(
                f"the memory {self._store.folder} was assembled from shards, which would replace what it ingests: "
                "feed the shards, or set memory.path to a new folder"
            )
        if not page.entries and dict(page.next) == self.offset():
            return IngestCounts()
        tally: Counter[str] = Counter({"lost": page.lost} if page.lost else ())
        with self._change():
            self._intake.take(page.entries, tally)
            self._store.write_all(
                "INSERT INTO offsets VALUES (?, ?) ON CONFLICT DO UPDATE SET position = excluded.position",
                page.next.items(),
            )
            self._store.add_totals({name: count for name, count in tally.items() if name in COUNTED})
        if tally["erasures"]:
            self._store.checkpoint()
        return IngestCounts(**tally)

    # ── the turn ──
    def turn(self) -> TurnState:
        with self._store.snapshot():
            return self._turns.state()

    def freeze(self, *, champion: str | None, promotion: int) -> TurnState:
        with self._store.transaction():
            self._turns.freeze(champion, promotion)
        return self.turn()

    def rows(self) -> tuple[Row, ...]:
        """The rows of the frozen turn, ordered by id, only the last label of each; none while the turn is open."""
        return self._turns.rows()

    def finish(self, summary: str) -> None:
        """Ends the frozen turn: its rows leave, the next turn is open, and `summary` (JSON) is kept.

        Raises:
            UsageError: the turn is not frozen.
        """
        with self._store.transaction():
            self._turns.finish(summary)

    def history(self, limit: int) -> tuple[str, ...]:
        """Summaries of the last turns, at most `limit` and 1,000, oldest first."""
        return self._turns.history(limit)

    # ── the head's statistics ──
    def deltas(self, limit: int) -> tuple[Delta, ...]:
        return self._statistics.deltas(limit)

    def statistics(self) -> str | None:
        return self._statistics.name()

    def statistics_parts(self) -> tuple[str, ...]:
        """Names of the files, in `folder`, whose sums the statistics are where `assemble` has left no pointer."""
        return self._statistics.parts()

    def set_statistics(self, name: str, *, through: int) -> None:
        """Points to `name`, which contains all deltas up to sequence `through`, and drops those, in one transaction.

        It contains the sums of all `statistics_parts` too, which are let go of. Files that are no longer pointed to are
        removed afterwards.

        Raises:
            UsageError: there is no such file, or `through` was not handed out, or was before a rebuild.
        """
        self._statistics.point(name, through)

    def rebuild_statistics(self) -> None:
        with self._store.transaction():
            self._statistics.rebuild()
        self._statistics.sweep()

    @property
    def rebuild_due(self) -> bool:
        """An erasure left labels in the head's statistics that only `rebuild_statistics` takes out."""
        return bool(self._store.state("rebuild_due"))

    @property
    def folder(self) -> str:
        return str(self._statistics.folder)

    # ── samples and views ──
    def samples(self) -> tuple[Sample, ...]:
        """All living samples of all labels, pending ones included, ordered by label and place."""
        with self._look():
            return self._samples.everything()

    def counts(self) -> MemoryCounts:
        """What is held now. `fresh` counts the labelled rows that the next turn would get."""
        with self._store.snapshot():
            return counts(self._store, self._reservoir, self._turns, self._statistics, self._settings)

    @property
    def quarantine_dropped(self) -> int:
        """Rows that left quarantine because of its bound."""
        return int(self._store.state("quarantine_dropped"))

    def digest(self) -> str:
        with self._store.snapshot():
            return self._reservoir.digest()

    def classes(self) -> Mapping[str, int]:
        return self._turns.classes()

    def embedded(self, version: str) -> frozenset[str]:
        return self._views.embedded(version)

    def embedding_space(self) -> str | None:
        return self._views.version()

    def embed(self, version: str, keys: Sequence[str], vectors: Float) -> None:
        """Stores embeddings (n × d, any length, normalised here) made by `version`; older versions' go.

        Keys of samples that are gone meanwhile are passed over.

        Raises:
            UsageError: the shapes do not fit, or a value is not finite.
        """
        with self._change():
            self._views.embed(version, keys, vectors)

    def neighbours(self, vectors: Float, k: int) -> Neighbours:
        """The k most similar living samples that have an embedding, for each of n query vectors (n × d).

        Raises:
            UsageError: the shapes do not fit, or FAISS is not installed.
        """
        with self._look():
            keys, similarities = self._views.neighbours(vectors, k)
            samples = self._samples.named(key for row in keys for key in row)
        return Neighbours(
            samples=tuple(tuple(samples[key] for key in row) for row in keys),
            similarities=tuple(tuple(row) for row in similarities),
        )

    def near_duplicates(self) -> tuple[frozenset[str], ...]:
        with self._look():
            return self._views.near_duplicates()

    def representatives(self, label: str, k: int) -> tuple[Sample, ...]:
        """k living, not held out samples that cover the label's embeddings best (herding).

        Samples without an embedding come after the others, in the order of their places.
        """
        with self._look():
            samples = {sample.key: sample for sample in self._samples.of_label(label) if not sample.held_out}
            return tuple(samples[key] for key in self._views.covering(label, tuple(samples), k))

    # ── doubt and forgetting ──
    def quarantine(self, rows: Sequence[Quarantined]) -> None:
        with self._store.transaction():
            self._quarantine.keep(rows)
            self._quarantine.prune()

    def quarantined(self) -> tuple[Quarantined, ...]:
        return self._quarantine.rows()

    def forget(self, subject: str, until: float) -> Forgotten:
        """Removes what is kept of a subject's interactions up to `until` (s), with tombstones against redelivery.

        Raises:
            UsageError: `until` is not a time up to a day ahead of the clock.
        """
        return self._forget(self._priorities.subject(subject), until, told=subject)

    def alias(self, subject: str) -> str:
        """The keyed hash by which this memory knows `subject`; every memory of one seed has the same."""
        return self._priorities.subject(subject).hex()

    def erasures(self) -> Mapping[str, float]:
        """The time (s) up to which each alias was forgotten, of erasures that may still meet a late record."""
        return {
            subject.hex(): until
            for subject, until in self._store.rows("SELECT subject, until FROM erasures ORDER BY until, subject")
        }

    @property
    def horizon(self) -> float:
        """The event time (s) before which records are too late, and erasures are let go of; −inf before the first."""
        return self._intake.join.over()

    def forget_alias(self, alias: str, until: float) -> Forgotten:
        """As `forget`, of whom `alias` names.

        Raises:
            UsageError: `until` cannot be, or `alias` is no alias.
        """
        try:
            subject = bytes.fromhex(alias)
        except ValueError as error:
            raise UsageError(f"{alias!r} is no alias of a subject: give what `erasures` or `alias` says") from error
        return self._forget(subject, until, told=alias)

    def _forget(self, subject: bytes, until: float, *, told: str) -> Forgotten:
        if not math.isfinite(until) or until > self._intake.latest():
            raise UsageError(f"until is {until}: give seconds since the epoch, not later than now")
        with self._change():
            erased = self._intake.erase(subject, until)
            rebuild = bool(self._store.state("rebuild_due"))
        self._store.checkpoint()
        return Forgotten(
            subject=told,
            interactions=erased.interactions,
            samples=erased.samples,
            quarantined=erased.quarantined,
            deltas=erased.deltas,
            rebuild_head=rebuild,
        )

    # ── shards ──
    def snapshot(self, folder: Path, *, links: bool = True) -> None:
        """Writes a copy of this memory into the new folder `folder`, where it can be opened, or assembled.

        It is what was committed at one moment, also where this memory is only read and another process goes on writing.

        Args:
            folder: made here.
            links: whether files that never change may be hard links to those of this memory.

        Raises:
            StoreFull: it cannot be written; `folder` is not there then.
            StoreBusy: the writer replaced the head's statistics during each of several tries.
        """
        for _ in range(SNAPSHOT_TRIES):
            try:
                folder.mkdir(parents=True)
                self._store.copy(folder / FILE)
                # What the copy points to, not what is pointed to by now.
                with closing(Store(folder, read_only=True)) as copied:
                    names = Statistics(copied).files()
                self._statistics.export(names, folder / STATISTICS, links=links)
            except FileNotFoundError:
                shutil.rmtree(folder)
            except (OSError, StoreFull) as error:
                shutil.rmtree(folder, ignore_errors=True)
                if isinstance(error, StoreFull):
                    raise
                raise StoreFull(
                    f"the copy {folder} of the memory {self._store.folder} cannot be written "
                    f"({error.strerror or error}): free some space there and make it writable; the memory is whole"
                ) from error
            else:
                return
        raise StoreBusy(
            f"the head's statistics of {self._store.folder} were replaced during each of {SNAPSHOT_TRIES} copies: "
            "try again when fewer turns run"
        )

    def assemble(self, shards: Sequence[Path]) -> Assembled:
        """Makes this memory hold what one memory that had ingested all the shards' entries would hold.

        What came from shards before is replaced, in one transaction. The turn's number and history, classes, which
        rows a turn has seen with which label, what was quarantined here, and embeddings of samples that are still
        shown stay. Afterwards `statistics` is None: the head's are the sums of `statistics_parts` and the deltas.

        It is exact where no bound depends on the order of ingestion; `perdure_replay.shards` says what holds where one
        does.

        Args:
            shards: folders of the newest snapshots of all shards, in any order; they are only read. Their bounds
                must not be smaller than this memory's.

        Raises:
            UsageError: the turn is frozen, or the shards do not fit; the message says why. Nothing has changed.
            StoreCorrupt: a shard cannot be read. Nothing has changed.
            StoreFull: the disk is full. Nothing has changed.
        """
        with opened(shards, self._intake) as found:
            if (state := self.turn()).stage != "open":
                raise UsageError(f"turn {state.number} is frozen: finish it before shards are assembled")
            for shard in found:
                if shard.statistics is not None:
                    self._statistics.bring(shard.store.folder / STATISTICS / shard.statistics, part_name(shard))
            with self._change():
                assembled = assemble(found, self._intake)
        self._statistics.sweep()
        # What was replaced may hold what is forgotten now.
        self._store.checkpoint()
        return assembled

    def close(self) -> None:
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
