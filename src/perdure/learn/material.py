"""What one turn works with, encoded once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from perdure.learn.gate import Gated
from perdure.memory import Row
from perdure.model.adapter import Adapter
from perdure.model.classifier import Encoded, encode
from perdure.model.encoder import Encoder
from perdure.model.head import Double
from perdure.records import Sample, sample_key


class Encodings:
    """Encodes each text once for one encoder and adapter, in batches of a fixed shape.

    Args:
        encoder: the frozen encoder.
        adapter: the adapter, if any.
        batch: texts in one forward pass.
        frozen: what it holds of a text's frozen features is taken from there.
    """

    def __init__(self, encoder: Encoder, adapter: Adapter | None, batch: int, frozen: Encodings | None = None) -> None:
        self._encoder = encoder
        self._adapter = adapter
        self._batch = batch
        self._frozen = frozen
        self._place: dict[str, int] = {}
        self._stored: Encoded | None = None

    def __call__(self, texts: Sequence[str]) -> Encoded:
        """What the encoder says of n texts."""
        missing = list(dict.fromkeys(text for text in texts if text not in self._place))
        known = [text for text in missing if self._frozen is not None and text in self._frozen]
        if known and self._frozen is not None and self._adapter is not None:
            again = self._adapter.embeddings(known, self._batch)
            self._store(known, Encoded(self._frozen(known).features, again, again))
            missing = [text for text in missing if text not in self._place]
        if missing or self._stored is None:
            self._store(missing, encode(self._encoder, self._adapter, missing, self._batch))
        assert self._stored is not None
        rows = [self._place[text] for text in texts]
        stored = self._stored
        adapted = None if stored.adapted is None else stored.adapted[rows]
        return Encoded(stored.features[rows], adapted, stored.last[rows])

    def __contains__(self, text: str) -> bool:
        return text in self._place

    def beside(self, adapter: Adapter) -> Encodings:
        """Encodings with another adapter: of the texts that these hold, the frozen features are not computed again."""
        return Encodings(self._encoder, adapter, self._batch, self)

    def _store(self, texts: Sequence[str], new: Encoded) -> None:
        self._stored = new if self._stored is None else _joined(self._stored, new)
        self._place.update({text: len(self._place) + index for index, text in enumerate(texts)})


def _joined(first: Encoded, second: Encoded) -> Encoded:
    adapted = None
    if first.adapted is not None and second.adapted is not None:
        adapted = np.concatenate([first.adapted, second.adapted])
    return Encoded(
        np.concatenate([first.features, second.features]), adapted, np.concatenate([first.last, second.last])
    )


@dataclass(frozen=True, slots=True)
class Labelled:
    """Rows with labels: n texts, their labels and their sample keys."""

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    keys: tuple[str, ...]

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> Labelled:
        """From (text, label) pairs; the same pair twice counts once."""
        unique = {sample_key(label, text): (text, label) for text, label in pairs}
        texts, labels = tuple(text for text, _ in unique.values()), tuple(label for _, label in unique.values())
        return cls(texts, labels, tuple(unique))

    def __len__(self) -> int:
        return len(self.texts)

    def where(self, keep: Sequence[bool]) -> Labelled:
        """The rows for which `keep` is true."""
        rows = [row for row, kept in enumerate(keep) if kept]
        return Labelled(
            tuple(self.texts[row] for row in rows),
            tuple(self.labels[row] for row in rows),
            tuple(self.keys[row] for row in rows),
        )

    def __add__(self, other: Labelled) -> Labelled:
        return replace(
            self, texts=self.texts + other.texts, labels=self.labels + other.labels, keys=self.keys + other.keys
        )


@dataclass(frozen=True, slots=True)
class Material:
    """One turn's rows and samples."""

    turn: int
    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]
    """All living samples, those that came with this turn's rows included."""
    gated: Gated
    encodings: Encodings
    """In the space of the champion with which the turn began, or of the challenger that it has promoted since."""

    def fresh(self) -> Labelled:
        """Labelled rows of this turn, but for those in quarantine."""
        doubtful, rows = self.doubtful(), self.labelled()
        return rows.where([key not in doubtful for key in rows.keys])

    def labelled(self) -> Labelled:
        """Labelled rows of this turn, those in quarantine among them."""
        return Labelled.of([(row.text, row.label) for row in self.rows if row.label is not None])

    def doubtful(self) -> frozenset[str]:
        """Keys of the samples that came with rows which went into quarantine in this turn."""
        rows = (decision.row for decision in self.gated.of("quarantine"))
        return frozenset(sample_key(row.label, row.text) for row in rows if row.label is not None)

    def offered(self) -> tuple[str, ...]:
        """Keys of all that an update may have been trained on in this turn, pseudo-labelled rows among them."""
        pseudo = [(one.row.text, one.label) for one in self.gated.of("pseudo") if one.label is not None]
        return (*self.remembered().keys, *self.labelled().keys, *Labelled.of(pseudo).keys)

    def copies(self, keys: Sequence[str]) -> Double:
        """How often the head's statistics hold each of n samples of this turn or of memory."""
        here = Counter(sample_key(row.label, row.text) for row in self.rows if row.label is not None)
        kept = {sample.key: sample.copies for sample in self.samples}
        return np.asarray([max(kept.get(key, 1), here[key], 1) for key in keys], dtype=np.float64)

    def remembered(self) -> Labelled:
        """Living samples that did not come with this turn's rows."""
        here = {sample_key(row.label, row.text) for row in self.rows if row.label is not None}
        return Labelled.of([(sample.text, sample.label) for sample in self.samples if sample.key not in here])
