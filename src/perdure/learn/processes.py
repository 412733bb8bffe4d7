"""The processes that train one update together, each on its part of every batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as distributed
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together; alone, unless a process group was started (`perdure.torchrun`)."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """As PyTorch's default process group has it."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return cls()
        return cls(distributed.get_rank(), distributed.get_world_size())

    @property
    def leads(self) -> bool:
        """Whether this is the process that ingests, judges and promotes; the others only train."""
        return self.rank == 0

    def share(self, lengths: Sequence[int]) -> frozenset[int]:
        """The rows that are this process's, always: every `count`-th by length, so that all have as much to do."""
        order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
        return frozenset(order[self.rank :: self.count])

    def add_up(self, tensor: Tensor) -> None:
        """Replaces `tensor` in every process by the sum over all of them; alone it stays."""
        if self.count > 1:
            distributed.all_reduce(tensor)

    def tell(self, message: bytes) -> None:
        """Sends `message` from the process that leads to all others."""
        assert self.leads
        self._broadcast(torch.tensor([len(message)], dtype=torch.int64))
        self._broadcast(torch.frombuffer(bytearray(message), dtype=torch.uint8) if message else torch.zeros(0))

    def hear(self) -> bytes:
        """What the process that leads tells; waits for it."""
        length = int(self._broadcast(torch.zeros(1, dtype=torch.int64)))
        return bytes(self._broadcast(torch.zeros(length, dtype=torch.uint8)).numpy())

    def _broadcast(self, tensor: Tensor) -> Tensor:
        if not tensor.numel():
            return tensor
        # NCCL only knows of tensors on GPUs, gloo takes those of the processor.
        here = tensor.cuda() if distributed.get_backend() == "nccl" else tensor
        distributed.broadcast(here, src=0)
        return here.cpu()
