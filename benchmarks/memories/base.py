"""What a memory does in the benchmark."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from memories.workload import Page, Vectors, Workload


class Contestant(ABC):
    """One memory in `folder`, which is its own; it is filled in one process and asked in another.

    Args:
        folder: what it keeps on disk.
        workload: what is offered.
    """

    rows: ClassVar[int] = 1000
    """Samples offered at once."""

    def __init__(self, folder: Path, workload: Workload) -> None:
        self.folder = folder
        self.workload = workload

    @abstractmethod
    def create(self) -> None:
        """Begins with an empty memory."""

    def prepare(self, page: Page) -> Any:
        """The page in the form in which this memory takes it; not timed."""
        return page

    @abstractmethod
    def take(self, prepared: Any) -> None:
        """Offers what was prepared; timed."""

    def rest(self) -> None:  # noqa: B027 (most have nothing to do)
        """What has to be done now and then, ten times in all; timed apart."""

    @abstractmethod
    def save(self) -> int:
        """Makes it durable as well as it can; returns the samples kept."""

    def details(self) -> Mapping[str, object]:
        """More to report of filling."""
        return {}

    @abstractmethod
    def open(self) -> None:
        """Opens what was saved, in a new process."""

    def close(self) -> None:  # noqa: B027 (most have nothing to give back)
        """Gives back what `open` took."""

    def first(self) -> object:
        """Reads one sample of a memory that answers no queries."""
        raise NotImplementedError


class Answering(Contestant):
    """A memory that finds neighbours."""

    @abstractmethod
    def kept(self) -> Sequence[int]:
        """Numbers of the samples kept; the vector of each is the workload's of that number."""

    @abstractmethod
    def neighbours(self, query: Vectors, k: int) -> Sequence[int]:
        """Numbers of the k nearest to one query (1 × d), nearest first."""
