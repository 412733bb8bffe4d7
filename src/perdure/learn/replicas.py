"""The threads that compute one step together, each with its part of the batch and gradients of its own."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier
from typing import Protocol

import torch
from torch import Tensor, nn

from perdure.config import LoraSettings
from perdure.learn.lowrank import LowRankLinear

ROWS_WORTH_A_THREAD = 8
"""Fewer rows than this keep a thread busy with what each pass costs however little goes through it."""


@dataclass(frozen=True, slots=True)
class Replica:
    """The trained layers and the head once more: the very same numbers, but gradients that one thread adds to."""

    top: nn.ModuleList
    head: nn.Parameter
    gradients: Tensor
    """Of A and B of each map and of the head, in one piece; at its end a place for the loss."""

    @classmethod
    def of(cls, top: nn.ModuleList, maps: Mapping[str, LowRankLinear], head: nn.Parameter) -> Replica:
        """Another of `top`, whose `maps` are trained, and of `head`."""
        shared = [*top.parameters(), *top.buffers()]
        copied = copy.deepcopy(top, {id(one): one for one in shared})
        own: list[nn.Parameter] = []
        for name in maps:
            one = copied.get_submodule(name)
            assert isinstance(one, LowRankLinear)
            one.A, one.B = nn.Parameter(one.A.detach()), nn.Parameter(one.B.detach())
            own += [one.A, one.B]
        own.append(nn.Parameter(head.detach()))
        return cls(copied, own[-1], gradients_of(own))


class Trains(Protocol):
    """What is trained."""

    def replica(self) -> Replica: ...

    def rows(self, batch: Sequence[int]) -> list[int]: ...

    def loss(self, replica: Replica, rows: Sequence[int], batch: Sequence[int], settings: LoraSettings) -> Tensor: ...


class Replicas:
    """As many replicas as threads are worth their while, and those threads; a context manager that ends them.

    One product of a short batch leaves most of a second core idle, however it is cut; two halves of the batch do not.
    PyTorch's own threads are divided among these. On a GPU there is one replica, and the thread is the caller's.

    Args:
        network: what is trained.
        batch: rows of a batch.
        device: where it is trained.
    """

    def __init__(self, network: Trains, batch: int, device: torch.device) -> None:
        threads = torch.get_num_threads() if device.type == "cpu" else 1
        count = max(1, min(threads, batch // ROWS_WORTH_A_THREAD))
        self._network = network
        self._replicas = [network.replica() for _ in range(count)]
        self._pool: ThreadPoolExecutor | None = None
        if count > 1:
            # A pool starts a thread only where none is idle: so nobody goes on before all are there.
            all_there = Barrier(count)
            self._pool = ThreadPoolExecutor(count, "replica", _begin, (threads // count, all_there))
            list(self._pool.map(lambda _: None, range(count)))
            # What a thread sets for itself is also what other new threads start with.
            torch.set_num_threads(threads)

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def sum_gradients(self, batch: Sequence[int], settings: LoraSettings, into: Tensor) -> None:
        """Writes the gradients of the mean loss over `batch`, and at the end the loss, over what is in `into`.

        The parts are summed in the same order whichever thread is done first.
        """
        rows = self._network.rows(batch)
        parts = [rows[start :: len(self._replicas)] for start in range(len(self._replicas))]
        given = [(replica, part, batch, settings) for replica, part in zip(self._replicas, parts, strict=True) if part]
        if self._pool is None:
            for one in given:
                self._compute(*one)
        else:
            for done in [self._pool.submit(self._compute, *one) for one in given]:
                done.result()
        into.zero_()
        for replica, *_ in given:
            into += replica.gradients

    def _compute(self, replica: Replica, part: Sequence[int], batch: Sequence[int], settings: LoraSettings) -> None:
        replica.gradients.zero_()
        loss = self._network.loss(replica, part, batch, settings)
        loss.backward()  # type: ignore[no-untyped-call]
        replica.gradients[-1] = loss.detach()


def _begin(threads: int, all_there: Barrier) -> None:
    torch.set_num_threads(threads)
    # Asked for, so that PyTorch notes it for this thread now, and not later what another has set since.
    torch.get_num_threads()
    all_there.wait()


def gradients_of(parameters: Sequence[Tensor]) -> Tensor:
    """Gives all parameters gradients that lie in one piece of memory; that, with a place for the loss at its end."""
    sizes = [parameter.numel() for parameter in parameters]
    gradients = torch.zeros(sum(sizes) + 1, device=parameters[0].device)
    pieces = torch.split(gradients[:-1], sizes)
    for parameter, piece in zip(parameters, pieces, strict=True):
        parameter.grad = piece.view_as(parameter)
    return gradients
