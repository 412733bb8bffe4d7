"""What is kept: versions, and samples of the past."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from perdure.config.section import Count, Positive, Section, Share


class RegistrySettings(Section):
    """Where versions and promotions are kept."""

    url: str = "var/perdure/registry"
    """A folder, or a URL of any object store (`s3://`, `gs://`, `az://`, `memory://`)."""
    retain: Count = 10
    """Versions kept beside champions and their parents."""
    cache: str = "var/perdure/cache"
    """Folder where serving keeps copies of versions, and remembers which it served last: from there it starts while the
    registry is away."""


class MemorySettings(Section):
    """What is kept of the past to learn from and to judge by."""

    path: str = "var/perdure/memory"
    """Folder of the memory; one process writes it at a time."""
    per_class: Count = 100
    """Samples per label, held-out ones included."""
    holdout_share: Share = 0.2
    """Share of all pairs of text and label, by a hash, that is the judge's evidence and that no adapter trains on.

    A memory's share may be lowered, but not raised again."""
    pending_labels_below: Count = 3
    """Examples that a new label needs before it becomes a class."""
    join_ttl_hours: Positive = 720.0
    """How long an interaction waits for feedback, and feedback for its interaction; by event time."""
    join_rows: Count = 200_000
    """Most interactions of one partition that wait for, or may still change, their label."""
    half_life_days: Annotated[float, Field(ge=0)] = 0.0
    """Half-life of a sample's priority; 0 means that age does not matter."""
    near_duplicate: Share = 0.97
    """Cosine similarity from which two samples count as saying the same."""
    quarantine_rows: Count = 10_000
    """Most unreadable or doubtful records kept to be looked at; older ones are dropped and counted."""
    fresh_rows: Count = 20_000
    """Most labelled rows that wait for the next turn; above it the rows of lowest priority are left out of LoRA."""

    @property
    def class_rows(self) -> int:
        """Samples with which a label becomes a class: no more than are kept of it."""
        return min(self.pending_labels_below, self.per_class)
