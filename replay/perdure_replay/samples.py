"""The living places as samples: with their texts, their weights, and who asserts them."""

from __future__ import annotations

from collections.abc import Iterable

from perdure.records import Sample, is_held_out
from perdure_replay.store import Rows, Store
from perdure_replay.views import Views

SHOWN = """
SELECT p.key, p.sample, p.label, p.time, p.support, s.text FROM places p
JOIN provenance s ON s.place = p.key AND s.hash = p.source
WHERE p.living = 1
"""
BACKED = "SELECT place, interaction FROM provenance WHERE backs = 1 AND interaction IS NOT NULL"


class Samples:
    """Reads only; all of one answer belongs together inside the caller's snapshot."""

    def __init__(self, store: Store, views: Views, holdout_share: float, *, decays: bool) -> None:
        self._store = store
        self._decays = decays
        self._views = views
        self._holdout_share = holdout_share

    def everything(self) -> tuple[Sample, ...]:
        """All of them, by label and place."""
        rows = self._store.rows(f"{SHOWN} ORDER BY p.label, p.score, p.key")
        return self._described(rows, self._store.rows(f"{BACKED} ORDER BY place, hash"))

    def of_label(self, label: str) -> tuple[Sample, ...]:
        """Those of `label`, in the order of their places."""
        rows = self._store.rows(f"{SHOWN} AND p.label = ? ORDER BY p.score, p.key", (label,))
        return self._described(rows, self._backed(rows))

    def named(self, keys: Iterable[str]) -> dict[str, Sample]:
        """Those with these sample keys; reading them costs what they are, not what memory holds."""
        rows = self._store.rows_in(f"{SHOWN} AND p.sample IN ({{}})", keys)
        return {sample.key: sample for sample in self._described(rows, self._backed(rows))}

    def _backed(self, rows: Rows) -> Rows:
        return self._store.rows_in(f"{BACKED} AND place IN ({{}}) ORDER BY place, hash", (row[0] for row in rows))

    def _described(self, rows: Rows, backed: Rows) -> tuple[Sample, ...]:
        provenance: dict[bytes, list[str]] = {}
        for place, interaction in backed:
            provenance.setdefault(place, []).append(interaction)
        weights = self._views.weights({row[2] for row in rows})
        return tuple(
            Sample(
                key=key,
                text=text,
                label=label,
                weight=weights.get(key, 1.0),
                held_out=is_held_out(key, self._holdout_share),
                time=time,
                provenance=tuple(provenance.get(place, ())),
                # Where priorities decay, what a place had before it was displaced is forgotten: then only those are
                # counted that are named, which do not depend on the order of events.
                copies=max(len(provenance.get(place, ())) if self._decays else support, 1),
            )
            for place, key, label, time, support, text in rows
        )
