"""Merging memories that were fed different interactions under one key."""

from __future__ import annotations

from perdure.errors import UsageError
from perdure_replay.intake import Intake
from perdure_replay.store import Store


def merge(source: Store, intake: Intake) -> None:
    """Merges places, classes and erasures of `source`, inside the caller's transaction.

    Raises:
        UsageError: another key or half-life, or it was merged before.
    """
    store = intake.store
    key, half_life, identity = source.rows("SELECT hash_key, half_life, identity FROM state")[0]
    if key != store.state("hash_key") or half_life != store.state("half_life"):
        raise UsageError(
            f"the memory {source.folder} has another key or half-life: make shards with one seed and one half-life"
        )
    if identity == store.state("identity") or store.rows("SELECT 1 FROM merged WHERE identity = ?", (identity,)):
        raise UsageError(f"the memory {source.folder} is in this one already: merge shards into a new memory instead")
    store.write("INSERT INTO merged VALUES (?)", (identity,))
    intake.reservoir.absorb(
        source.rows("SELECT key, label, score, time, support FROM places"),
        source.rows("SELECT place, hash, interaction, subject, made, time, backs, text FROM provenance"),
    )
    store.write_all(
        "INSERT INTO classes VALUES (?, ?) ON CONFLICT DO UPDATE SET turn = min(turn, excluded.turn)",
        source.rows("SELECT label, turn FROM classes"),
    )
    # Each side's erasures hold for the other side's interactions.
    for subject, until in store.rows("SELECT subject, until FROM erasures"):
        intake.reservoir.forget(subject, until, ())
    for subject, until in source.rows("SELECT subject, until FROM erasures"):
        intake.erase(subject, until)
