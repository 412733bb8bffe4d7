"""What a memory holds, in numbers."""

from __future__ import annotations

from perdure.config import MemorySettings
from perdure.memory import IngestCounts, MemoryCounts
from perdure.records import is_held_out
from perdure_replay.reservoir import Reservoir
from perdure_replay.statistics import Statistics
from perdure_replay.store import Store
from perdure_replay.turns import Turns


def counts(
    store: Store, reservoir: Reservoir, turns: Turns, statistics: Statistics, settings: MemorySettings
) -> MemoryCounts:
    """What is held now; all of it belongs together inside the caller's snapshot."""
    living = reservoir.living_keys()
    labels = reservoir.living()
    known = turns.classes()
    enough = {label for label, count in labels.items() if label in known or count >= settings.class_rows}
    waiting = _rows(store, "waiting")
    totals: dict[str, int] = dict(store.rows("SELECT name, value FROM totals"))
    return MemoryCounts(
        samples=len(living),
        held_out=sum(is_held_out(key, settings.holdout_share) for key in living),
        labels={label: labels.get(label, 0) for label in sorted({*enough, *known})},
        pending={label: count for label, count in labels.items() if label not in enough},
        tombstones=reservoir.size() - len(living),
        waiting_feedback=waiting,
        joinable=_rows(store, "interactions WHERE erased = 0"),
        fresh=min(_rows(store, "interactions WHERE fresh = 1 AND label IS NOT NULL"), settings.fresh_rows),
        quarantined=_rows(store, "quarantine"),
        memory_bytes=store.bytes_used() + statistics.bytes_used(),
        totals=IngestCounts(**totals, waiting=waiting),
    )


def _rows(store: Store, table: str) -> int:
    return int(store.value(f"SELECT count(*) FROM {table}"))
