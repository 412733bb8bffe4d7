"""Renate's buffers, in an environment of their own: they keep the datasets that they were given, and indices.

Renate 0.5.2 asks for PyTorch before 1.13.2, which has no wheel for Python 3.11. Its buffers need no more of that than
tensors: it is installed without what it asks for, and the names of three classes that its buffers import, and never
use, are stood in for.
"""

from __future__ import annotations

import sys
from abc import abstractmethod
from types import ModuleType
from typing import Any

import torch
from torch.utils.data import TensorDataset

from memories.base import Contestant
from memories.workload import Page

UNUSED = {
    "pytorch_lightning.loggers": "TensorBoardLogger",
    "syne_tune.optimizer.schedulers": "FIFOScheduler",
    "renate.data.data_module": "CSVDataModule",
}


def _stand_in() -> None:
    for name, unused in UNUSED.items():
        above = name.split(".")[:-1]
        for depth in range(1, len(above) + 1):
            if above[0] != "renate":
                sys.modules.setdefault(".".join(above[:depth]), ModuleType(above[0]))
        module = ModuleType(name)
        setattr(module, unused, type(unused, (), {}))
        sys.modules[name] = module


_stand_in()
from renate.memory.buffer import GreedyClassBalancingBuffer, ReservoirBuffer  # type: ignore[import-not-found]  # noqa: E402 (after the stand-ins)


class Rows(TensorDataset):
    """Rows with tensors of their own: `torch.save` writes all of the tensor that a row is a view of."""

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[index].clone() for tensor in self.tensors)


class Buffer(Contestant):
    """A buffer of vectors and classes; texts, which are no tensors of one size, it could only keep beside it."""

    rows = 10_000

    def create(self) -> None:
        self._buffer = self.buffer(self.workload.size.kept)

    @abstractmethod
    def buffer(self, size: int) -> Any:
        """An empty one."""

    def prepare(self, page: Page) -> Any:
        return Rows(torch.from_numpy(page.vectors), torch.from_numpy(page.labels))

    def take(self, prepared: Any) -> None:
        self._buffer.update(prepared)

    def save(self) -> int:
        # One file for each sample; the state names them.
        (self.folder / "samples").mkdir()
        self._buffer.save(str(self.folder / "samples"))
        torch.save(self._buffer.state_dict(), self.folder / "state.pt")
        return len(self._buffer)

    def open(self) -> None:
        self._buffer = self.buffer(self.workload.size.kept)
        self._buffer.load_state_dict(torch.load(self.folder / "state.pt", weights_only=False))
        self._buffer.load(str(self.folder / "samples"))

    def first(self) -> object:
        return self._buffer[0]


class Uniform(Buffer):
    """`ReservoirBuffer`: meant as a uniform sample of all."""

    def buffer(self, size: int) -> Any:
        return ReservoirBuffer(max_size=size)


class Balanced(Buffer):
    """`GreedyClassBalancingBuffer`: the largest class makes room."""

    def buffer(self, size: int) -> Any:
        return GreedyClassBalancingBuffer(max_size=size)
