"""Avalanche's buffers, in an environment of their own: they keep the datasets that they were given, and indices.

Lomonaco et al., "Avalanche: an End-to-End Library for Continual Learning", CVPR Workshops 2021.
"""

from __future__ import annotations

import pickle
from abc import abstractmethod
from typing import Any

import torch
from avalanche.benchmarks.utils.classification_dataset import (  # type: ignore[import-not-found]
    _make_taskaware_classification_dataset as classification_dataset,
)
from avalanche.training.storage_policy import (  # type: ignore[import-not-found]
    ClassBalancedBuffer,
    ReservoirSamplingBuffer,
)
from torch.utils.data import TensorDataset

from memories.base import Contestant
from memories.workload import LABELS, Page


class Rows(TensorDataset):
    """Vectors, and their classes as Avalanche looks for them."""

    def __init__(self, page: Page) -> None:
        super().__init__(torch.from_numpy(page.vectors), torch.from_numpy(page.labels))
        self.targets: list[int] = page.labels.tolist()


class Buffer(Contestant):
    """A buffer of vectors and classes; texts, which are no tensors of one size, it could only keep beside it."""

    rows = 10_000

    def create(self) -> None:
        torch.manual_seed(0)
        self._buffer = self.buffer()

    @abstractmethod
    def buffer(self) -> Any:
        """An empty one."""

    def prepare(self, page: Page) -> Any:
        rows = Rows(page)
        return classification_dataset(rows, targets=rows.targets, task_labels=0)

    def take(self, prepared: Any) -> None:
        self._buffer.update_from_dataset(prepared)

    def save(self) -> int:
        # It has no way to save itself; its checkpoints are pickles too.
        (self.folder / "buffer.pickle").write_bytes(pickle.dumps(self._buffer))
        return len(self._buffer.buffer)

    def open(self) -> None:
        self._buffer = pickle.loads((self.folder / "buffer.pickle").read_bytes())  # noqa: S301 (made here)

    def first(self) -> object:
        return self._buffer.buffer[0]


class Uniform(Buffer):
    """`ReservoirSamplingBuffer`: a uniform sample of all."""

    def buffer(self) -> Any:
        return ReservoirSamplingBuffer(self.workload.size.kept)


class Balanced(Buffer):
    """`ClassBalancedBuffer`: as many of each class."""

    def buffer(self) -> Any:
        return ClassBalancedBuffer(self.workload.size.kept, adaptive_size=False, total_num_classes=LABELS)
