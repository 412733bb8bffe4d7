"""The reservoir: for each label the places of best priority, tombstones included.

Memory is a function of the set of what was asserted, whatever the order: a label's places are the k best scores of all
pairs (label, text) ever asserted, and a place's provenance are the first few of all interactions that ever asserted it.
What is corrected or forgotten keeps its place without being alive, because what it displaced is gone.

Provenance is bounded by the interactions' keyed hashes. With a half-life a pair may leave and come back, and only its
latest assertion is sure to have been seen by every order: then that one alone is kept, and decides whether it is alive.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter

from perdure.config import MemorySettings
from perdure.records import sample_key
from perdure_replay.priority import Priorities
from perdure_replay.store import Rows, Store

PROVENANCE = 16
"""Interactions kept for one place."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One interaction's word on one label."""

    place: bytes
    label: str
    hash: bytes
    """Keyed hash of the interaction's id."""
    interaction: str | None
    """None when its subject was forgotten; then `subject` and `text` are None too."""
    subject: bytes | None
    made: float
    time: float
    """Its latest feedback with this label."""
    backs: bool
    """This is the interaction's label now."""
    backed: bool
    """It was so before, as far as `support` knows."""
    text: str | None


class Reservoir:
    """Places and provenance; every method that writes runs inside the caller's transaction."""

    def __init__(
        self, store: Store, priorities: Priorities, settings: MemorySettings, *, provenance: int = PROVENANCE
    ) -> None:
        self._store = store
        self._priorities = priorities
        self._bound = settings.per_class
        self._decays = settings.half_life_days > 0
        self._provenance = 1 if self._decays else provenance

    def apply(self, claims: Sequence[Claim]) -> None:
        """Enters `claims`; repeating one changes nothing."""
        by_place: dict[bytes, list[Claim]] = {}
        for claim in claims:
            by_place.setdefault(claim.place, []).append(claim)
        known = {
            key: (score, time)
            for key, score, time in self._store.rows_in(
                "SELECT key, score, time FROM places WHERE key IN ({})", by_place
            )
        }
        created = self._candidates({key: found for key, found in by_place.items() if key not in known})
        self._store.write_all(
            "INSERT INTO places (key, label, score, time, support, living) VALUES (?, ?, ?, ?, ?, 0)",
            [
                (key, by_place[key][0].label, score, time, sum(claim.backs for claim in by_place[key]))
                for key, (score, time) in created.items()
            ],
        )
        changed = []
        for key, (score, time) in known.items():
            latest = max(time, *(claim.time for claim in by_place[key]))
            support = sum(claim.backs - claim.backed for claim in by_place[key])
            better = min(score, self._priorities.score(key, latest))
            if latest > time or support:
                changed.append((better, latest, support, key))
        self._store.write_all(
            "UPDATE places SET score = ?, time = ?, support = max(support + ?, 0) WHERE key = ?", changed
        )
        self._enter_provenance(claim for key in (*known, *created) for claim in by_place[key])
        self.trim()
        self.refresh((*known, *created))

    def _candidates(self, new: dict[bytes, list[Claim]]) -> dict[bytes, tuple[float, float]]:
        """Score and time of those pairs that may get a place; most of a full label's do not."""
        full = self._store.rows_in(
            f"SELECT label FROM place_counts WHERE rows >= {self._bound} AND label IN ({{}})",
            (found[0].label for found in new.values()),
        )
        worst: dict[str, tuple[float, bytes]] = {
            label: self._store.rows(
                "SELECT score, key FROM places WHERE label = ? ORDER BY score DESC, key DESC LIMIT 1", (label,)
            )[0]
            for (label,) in full
        }
        candidates = {}
        for key, found in new.items():
            time = max(claim.time for claim in found)
            score = self._priorities.score(key, time)
            limit = worst.get(found[0].label)
            if limit is None or (score, key) < limit:
                candidates[key] = (score, time)
        return candidates

    def _enter_provenance(self, claims: Iterable[Claim]) -> None:
        self._store.write_all(
            """
            INSERT INTO provenance (place, hash, interaction, subject, made, time, backs, text)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (place, hash) DO UPDATE SET interaction = excluded.interaction, subject = excluded.subject,
                time = max(time, excluded.time), backs = excluded.backs, text = excluded.text
            """,
            ((c.place, c.hash, c.interaction, c.subject, c.made, c.time, c.backs, c.text) for c in claims),
        )

    def trim(self) -> None:
        """Takes the places beyond the bound away."""
        for label, surplus in self._store.rows(
            "SELECT label, rows - ?1 FROM place_counts WHERE rows > ?1", (self._bound,)
        ):
            self._store.write(
                """
                DELETE FROM places WHERE key IN
                    (SELECT key FROM places WHERE label = ? ORDER BY score DESC, key DESC LIMIT ?)
                """,
                (label, surplus),
            )

    def refresh(self, keys: Iterable[bytes]) -> int:
        """Bounds the provenance of places and derives from it what they show; returns how many are alive no more."""
        wanted = list(keys)
        places = {
            key: (label, support, before)
            for key, label, support, *before in self._store.rows_in(
                "SELECT key, label, support, living, sample, source FROM places WHERE key IN ({})", wanted
            )
        }
        found: dict[bytes, Rows] = {key: [] for key in places}
        for row in self._store.rows_in(
            "SELECT place, hash, time, backs, text FROM provenance WHERE place IN ({})", places
        ):
            found[row[0]].append(row)
        surplus: list[tuple[bytes, bytes]] = []
        derived = []
        stale: list[tuple[bytes]] = []
        died = 0
        for key, (label, support, before) in places.items():
            lived, _, source = before
            ranked = sorted(found[key], key=lambda row: (-row[2] if self._decays else 0.0, row[1]))
            surplus += [(key, row[1]) for row in ranked[self._provenance :]]
            kept = [row for row in ranked[: self._provenance] if row[4] is not None]
            supported = any(row[3] for row in kept) if self._decays else support > 0
            living = bool(kept) and supported
            text = kept[0][4] if kept else None
            shown = kept[0][1] if kept else None
            # Only the living have an embedding, of the text that they show.
            if lived and (not living or text != next((row[4] for row in ranked if row[1] == source), None)):
                stale.append((key,))
            died += bool(lived) and not living
            now = [int(living), sample_key(label, text) if living and text is not None else None, shown]
            if now != before:
                derived.append((*now, key))
        self._store.write_all("DELETE FROM provenance WHERE place = ? AND hash = ?", surplus)
        self._store.write_all("UPDATE places SET living = ?, sample = ?, source = ? WHERE key = ?", derived)
        self._store.write_all("DELETE FROM embeddings WHERE place = ?", stale)
        return died

    def forget(self, subject: bytes, until: float, erased: Iterable[tuple[bytes, bytes]]) -> int:
        """Blinds a subject's provenance; `erased` are (place, interaction hash) of joined labels that are gone.

        Returns the number of samples that nobody else supports.
        """
        mine = self._store.rows(
            "SELECT place, hash, backs FROM provenance WHERE subject = ? AND made <= ?", (subject, until)
        )
        withdrawn = {(place, hashed) for place, hashed, backs in mine if backs} | set(erased)
        self._store.write_all(
            "UPDATE places SET support = max(support - 1, 0) WHERE key = ?", [(place,) for place, _ in withdrawn]
        )
        self._store.write(
            """
            UPDATE provenance SET interaction = NULL, subject = NULL, text = NULL, backs = 0
            WHERE subject = ? AND made <= ?
            """,
            (subject, until),
        )
        return self.refresh({place for place, *_ in mine} | {place for place, _ in withdrawn})

    def rescore(self) -> None:
        """Makes all scores anew, after the half-life was changed, and keeps to the present bounds."""
        rows = self._store.rows("SELECT key, time FROM places")
        self._store.write_all(
            "UPDATE places SET score = ? WHERE key = ?",
            [(self._priorities.score(key, time), key) for key, time in rows],
        )
        self.trim()
        self.refresh([key for key, _ in rows])

    @property
    def excessive(self) -> bool:
        """Whether a label has more places than the setting allows."""
        return bool(self._store.rows("SELECT 1 FROM place_counts WHERE rows > ? LIMIT 1", (self._bound,)))

    def add_places(self, places: Rows) -> None:
        """Adds another reservoir's (key, label, score, time, support); `settle` must follow."""
        self._store.write_all(
            """
            INSERT INTO places (key, label, score, time, support, living) VALUES (?, ?, ?, ?, ?, 0)
            ON CONFLICT (key) DO UPDATE SET score = min(score, excluded.score), time = max(time, excluded.time),
                support = support + excluded.support
            """,
            places,
        )

    def add_provenance(self, provenance: Rows) -> None:
        """Adds another reservoir's (place, hash, interaction, subject, made, time, backs, text), after its places."""
        self._store.write_all(
            """
            INSERT INTO provenance (place, hash, interaction, subject, made, time, backs, text)
            VALUES (?, ?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (place, hash) DO UPDATE SET time = max(time, excluded.time)
            """,
            provenance,
        )

    def correct(self, claims: Sequence[Claim], support: Mapping[bytes, int]) -> None:
        """Enters `claims` over what was added of their interactions, and changes support; `settle` must follow."""
        self.add_places(
            [
                (claim.place, claim.label, self._priorities.score(claim.place, claim.time), claim.time, change)
                for claim in claims
                for change in (support.get(claim.place, 0),)
            ]
        )
        self._enter_provenance(claims)

    def settle(self) -> None:
        """Bounds what was added, and derives what it shows."""
        self._store.write("UPDATE places SET support = 0 WHERE support < 0")
        self.trim()
        self.refresh([key for (key,) in self._store.rows("SELECT key FROM places")])

    def embed_again(self, embeddings: Rows) -> None:
        """Puts (place, version, vector, text) back where the place is alive and shows that text still."""
        shown: dict[bytes, str] = dict(
            self._store.rows(
                """
                SELECT p.key, s.text FROM places p JOIN provenance s ON s.place = p.key AND s.hash = p.source
                WHERE p.living = 1
                """
            )
        )
        self._store.write_all(
            "INSERT INTO embeddings (place, version, vector) VALUES (?, ?, ?)",
            [row[:3] for row in embeddings if shown.get(row[0]) == row[3]],
        )

    def living_keys(self) -> tuple[str, ...]:
        """The sample keys of all living places."""
        return tuple(key for (key,) in self._store.rows("SELECT sample FROM places WHERE living = 1"))

    def size(self) -> int:
        """Number of places, tombstones included."""
        return int(self._store.rows("SELECT count(*) FROM places")[0][0])

    def living(self) -> dict[str, int]:
        """Living samples of each label, by label."""
        return dict(
            self._store.rows("SELECT label, count(*) FROM places WHERE living = 1 GROUP BY label ORDER BY label")
        )

    def digest(self) -> str:
        """BLAKE2b-256, in hexadecimal digits, over every label's places in order, and whether each is alive."""
        digest = hashlib.blake2b(digest_size=32)
        rows = self._store.rows("SELECT label, key, living FROM places ORDER BY label, score, key")
        for label, places in groupby(rows, key=itemgetter(0)):
            name = label.encode("utf-8")
            digest.update(len(name).to_bytes(4, "big") + name)
            for _, key, living in places:
                digest.update(key + (b"\1" if living else b"\0"))
            digest.update(b"\2")
        return digest.hexdigest()
