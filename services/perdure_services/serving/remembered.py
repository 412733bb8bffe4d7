"""The replay memory of this machine, as serving looks into it: to read, beside the trainer that writes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path

from perdure.config import Settings
from perdure.errors import PerdureError, UsageError
from perdure.memory import ENTRY_POINTS, Memory, open_memory
from perdure_services.serving.embedder import Embedded
from perdure_services.serving.refusal import Refusal

Signature = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Near:
    """A remembered sample near a text."""

    text: str
    label: str
    similarity: float
    """Cosine of the angle between both, at most 1."""


class Remembered:
    """Samples near a text. For one thread at a time.

    Memory is opened for reading when first asked, and again when its folder holds another one. Each look sees what the
    trainer has committed last: what it has forgotten is found no more. A look takes no lock that the trainer needs.
    """

    def __init__(self, settings: Settings, opening: Callable[..., Memory] = open_memory) -> None:
        # The index stays beside the model's processor: looks are rare, and a GPU's memory is the model's.
        self._settings = settings.with_values({"device": "cpu"})
        self._folder = Path(settings.memory.path)
        self._opening = opening
        self._memory: Memory | None = None
        self._seen: Signature = ()

    def near(self, embedded: Embedded, k: int) -> tuple[tuple[Near, ...], ...]:
        """For each of the embedded texts, up to `k` samples, nearest first.

        Raises:
            Refusal: 409 there is no memory, or none whose samples lie in the same space; 501 none can be opened here.
            PerdureError: memory cannot be read now.
        """
        memory = self._open()
        try:
            self._check(memory, embedded)
            try:
                found = memory.neighbours(embedded.vectors, k)
            except UsageError as error:
                # The trainer may have embedded memory anew since: then that is what is said.
                self._check(memory, embedded)
                raise Refusal(501, f"memory cannot be searched here: {error}", do="install what it names") from error
            self._check(memory, embedded)
        except PerdureError:
            self.close()
            raise
        return tuple(
            tuple(
                Near(sample.text, sample.label, min(similarity, 1.0))
                for sample, similarity in zip(samples, similarities, strict=True)
            )
            for samples, similarities in zip(found.samples, found.similarities, strict=True)
        )

    def close(self) -> None:
        """Closes memory; the next look opens it again."""
        memory, self._memory = self._memory, None
        if memory is not None:
            memory.close()

    def _open(self) -> Memory:
        seen = self._signature()
        if self._memory is not None and seen == self._seen:
            return self._memory
        self.close()
        if not entry_points(group=ENTRY_POINTS):
            raise Refusal(
                501, "no replay memory is installed here", do="install perdure[cpu] or perdure[gpu] where serving runs"
            )
        try:
            self._memory = self._opening(self._settings, read_only=True)
        except UsageError as error:
            raise Refusal(
                409,
                f"there is no memory to explain by: {error}",
                value=str(self._folder),
                do="run the trainer on this machine, or set memory.path to the folder that it writes",
            ) from error
        self._seen = seen
        return self._memory

    def _signature(self) -> Signature:
        # Who moves a memory away and starts anew, or restores one, leaves other files behind the same names.
        with suppress(OSError):
            return tuple(sorted((file.name, file.stat().st_ino) for file in self._folder.glob("*.db")))
        return ()

    def _check(self, memory: Memory, embedded: Embedded) -> None:
        space = memory.embedding_space()
        if space != embedded.space:
            holds = "no embedded samples" if space is None else f"samples of the space {space!r} only"
            raise Refusal(
                409,
                f"version {embedded.version} compares texts in the space {embedded.space!r}, but memory holds {holds}",
                value=space,
                do="try again after the next turn, which embeds memory for the version that serves",
            )
