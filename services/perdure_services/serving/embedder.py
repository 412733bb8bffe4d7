"""Where texts lie in the space of the version that serves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from perdure.config import ServingSettings
from perdure.records import Float
from perdure_services.serving.batcher import no_champion
from perdure_services.serving.champion import Champion
from perdure_services.serving.limits import check_texts
from perdure_services.serving.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Embedded:
    """n texts, and where they lie."""

    version: str
    """The version that says so."""
    space: str
    """Vectors of the same space can be compared, whichever version they are of."""
    vectors: Float
    """n × d, each row of length 1."""


class Embedder:
    """Asks the version that serves, a piece of a request at a time, so that answers come in between.

    Args:
        champion: what serves.
        settings: what one request may hold.
        piece: texts asked at once.
    """

    def __init__(self, champion: Callable[[], Champion | None], settings: ServingSettings, *, piece: int) -> None:
        self._champion = champion
        self._settings = settings
        self._piece = piece

    def check(self, texts: Sequence[str]) -> None:
        """Refuses what `embedded` would, without asking the version.

        Raises:
            Refusal: 413 a text is too long, 422 too many texts, 501 the version has no embeddings, 503 nothing is
                served.
        """
        check_texts(texts, self._settings)
        self._serving()

    def embedded(self, texts: Sequence[str]) -> Embedded:
        """Where `texts` (at least one) lie; one version says so of all. Takes its time: not for the event loop.

        Raises:
            Refusal: as `check`.
        """
        self.check(texts)
        champion, space = self._serving()
        pieces = [
            champion.classifier.embeddings(texts[first : first + self._piece])
            for first in range(0, len(texts), self._piece)
        ]
        vectors = np.concatenate(pieces)
        if len(vectors) != len(texts) or not np.isfinite(vectors).all():
            raise ArithmeticError(
                f"version {champion.version} embedded {len(texts)} texts as an array of shape {vectors.shape} whose "
                "numbers are not all finite"
            )
        return Embedded(champion.version, space, vectors)

    def _serving(self) -> tuple[Champion, str]:
        champion = self._champion()
        if champion is None:
            raise no_champion()
        space = champion.classifier.space
        if space is None:
            raise Refusal(
                501,
                f"version {champion.version} has no embeddings",
                value=champion.version,
                do="promote a version that has an encoder",
            )
        return champion, space
