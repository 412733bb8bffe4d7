"""The frozen layers' output for rows that are met again and again: computed once, kept by row and true length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from perdure.model.encoder import Cut, Encoder

CACHE_BYTES = 512 * 2**20
"""Most bytes of states that are kept; what does not fit is computed anew each time."""
FILL_TOKENS = 2048
"""Tokens in one batch while the cache is filled."""


class TrunkCache:
    """The states below an encoder's cut for n texts.

    Args:
        encoder: whose layers below the cut are run.
        tokens: of the n texts.
        rows: those that will be asked for; by default all.
        dtype: precision of the products below the cut; states are kept in float32.
        limit: most bytes kept. Short texts are kept first: they cost the most per byte.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokens: Sequence[Sequence[int]],
        *,
        rows: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        limit: int = CACHE_BYTES,
    ) -> None:
        self._encoder = encoder
        self._tokens = tokens
        self._dtype = dtype
        order = sorted(range(len(tokens)) if rows is None else rows, key=lambda row: (len(tokens[row]), row))
        ends = np.cumsum([len(tokens[row]) for row in order], dtype=np.int64)
        fits = int(np.searchsorted(ends, limit // (4 * encoder.dim), side="right"))
        self._kept = order[:fits]
        self._start = dict(zip(self._kept, [0, *ends[: fits - 1].tolist()] if fits else [], strict=True))
        size = int(ends[fits - 1]) if fits else 0
        # The last state is 0 and stands wherever a batch is padded.
        self._states = torch.zeros(size + 1, encoder.dim, device=encoder.device)
        self._filled = False

    @property
    def nbytes(self) -> int:
        """Bytes of states kept."""
        return self._states.nbytes

    @property
    def rows(self) -> int:
        """Texts whose states are kept."""
        return len(self._kept)

    def fill(self) -> None:
        """Computes what is kept, where that was not done; the first batch would do it, too."""
        if self._filled:
            return
        self._filled = True
        start = 0
        while start < len(self._kept):
            # Sorted by length, so the longest of the first so many is the last of them.
            count = max(1, FILL_TOKENS // len(self._tokens[self._kept[start]]))
            part = self._kept[start : start + count]
            hidden, mask = self._computed(part, len(self._tokens[part[-1]]))
            place = self._start[part[0]]
            states = hidden[mask.bool()]
            self._states[place : place + len(states)] = states
            start += len(part)

    def _computed(self, rows: Sequence[int], length: int) -> tuple[Tensor, Tensor]:
        device = self._encoder.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self._dtype == torch.bfloat16):
            trunk = self._encoder.trunk([self._tokens[row] for row in rows], length=length)
        return trunk.hidden.float(), trunk.mask

    def batch(self, rows: Sequence[int]) -> Cut:
        """What enters the layers above the cut for `rows`, padded to the longest of them."""
        self.fill()
        tokens = [self._tokens[row] for row in rows]
        length = max(len(ids) for ids in tokens)
        places = np.full((len(rows), length), len(self._states) - 1, dtype=np.int64)
        missing = []
        for index, row in enumerate(rows):
            start = self._start.get(row)
            if start is None:
                missing.append(index)
            else:
                size = len(tokens[index])
                places[index, :size] = np.arange(start, start + size)
        hidden = self._states[torch.from_numpy(places).to(self._states.device)]
        if missing:
            hidden[missing] = self._computed([rows[index] for index in missing], length)[0]
        return self._encoder.cut(tokens, hidden)
