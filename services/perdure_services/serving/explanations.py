"""What can be told of a text beside its label: where it lies, and what is remembered there."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import Request

from perdure.config import Settings
from perdure_services.serving.aside import Aside
from perdure_services.serving.embedder import Embedded, Embedder
from perdure_services.serving.remembered import Near, Remembered
from perdure_services.serving.service import Service


class Explanations:
    """Embeddings and neighbours, in a thread beside the one that answers."""

    def __init__(self, settings: Settings, service: Service) -> None:
        serving = settings.serving
        self._default = serving.neighbours
        self._embedder = Embedder(lambda: service.champions.current, serving, piece=serving.max_batch)
        self._remembered = Remembered(settings)
        self._aside = Aside()

    async def embedded(self, texts: Sequence[str]) -> Embedded:
        """Where `texts` lie.

        Raises:
            Refusal: 422 too many texts, 429 too many requests wait, 501 the version that serves has no embeddings, 503
                nothing is served, 504 they were not there by the deadline.
        """
        self._embedder.check(texts)
        return await self._aside.do(lambda: self._embedder.embedded(texts))

    async def near(self, texts: Sequence[str], k: int | None = None) -> tuple[tuple[Near, ...], ...]:
        """For each text, up to `k` remembered samples, nearest first; None for `serving.neighbours`.

        Raises:
            Refusal: as `embedded`; 409 there is no memory, or none that fits; 501 none can be opened here.
            PerdureError: memory cannot be read now.
        """
        self._embedder.check(texts)
        return await self._aside.do(
            lambda: self._remembered.near(self._embedder.embedded(texts), self._default if k is None else k)
        )

    def close(self, timeout: float) -> None:
        """Ends the thread within `timeout` seconds, and closes memory."""
        if self._aside.close(timeout):
            self._remembered.close()


def explanations_of(request: Request) -> Explanations:
    """The explanations of the app that answers `request`."""
    explanations = request.app.state.explanations
    assert isinstance(explanations, Explanations)
    return explanations
