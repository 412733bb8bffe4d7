"""The highest rate that a server bears."""

from __future__ import annotations

import math
from collections.abc import Callable

LOWEST = 1.0
"""Requests a second; a server that does not bear this bears nothing."""


def highest_rate(bears: Callable[[float], bool], start: float, *, step: float, confirmed: bool = False) -> float:
    """The highest rate of the ladder start·(1 + step)ᵏ that is borne; 0 where none is.

    It goes up or down from `start` in doubling strides until one rate is borne and a higher one is not, and then halves
    the stride between them. A rate that was borne is taken to say the same of all below it.

    Args:
        bears: asks the server at a rate and says whether it kept up.
        start: where to begin, about what it may bear.
        step: between two rates of the ladder, as a share.
        confirmed: ask a second time at the rate that was found; where it was luck, go down until one is borne.

    Raises:
        ValueError: `start` or `step` is not positive.
    """
    if start <= 0 or step <= 0:
        raise ValueError(f"a search needs a positive start and step, got {start:g} and {step:g}")

    def rate(rung: int) -> float:
        return start * (1 + step) ** rung

    bottom = min(0, math.ceil(math.log(LOWEST / start) / math.log(1 + step)))
    borne, refused = None, None
    rung, stride = 0, 1
    while borne is None or refused is None:
        if bears(rate(rung)):
            borne, rung = rung, rung + stride
        elif rung == bottom:
            return 0.0
        else:
            refused, rung = rung, max(rung - stride, bottom)
        stride *= 2
    while refused - borne > 1:
        middle = (borne + refused) // 2
        if bears(rate(middle)):
            borne = middle
        else:
            refused = middle
    while confirmed and not bears(rate(borne)):
        borne -= 1
        if borne < bottom:
            return 0.0
    return rate(borne)
