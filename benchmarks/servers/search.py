"""The highest rate that a server bears."""

from __future__ import annotations

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
        confirmed: ask a second time at the rate that was found, and go down the ladder until the answer is the same.

    Raises:
        ValueError: `start` or `step` is not positive.
    """
    if start <= 0 or step <= 0:
        raise ValueError(f"a search needs a positive start and step, got {start:g} and {step:g}")

    def rate(rung: int) -> float:
        return start * (1 + step) ** rung

    borne, refused = None, None
    rung, stride = 0, 1
    while borne is None or refused is None:
        if rate(rung) < LOWEST:
            return 0.0
        if bears(rate(rung)):
            borne, rung = rung, rung + stride
        else:
            refused, rung = rung, rung - stride
        stride *= 2
        if borne is not None and refused is not None:
            break
    while refused - borne > 1:
        middle = (borne + refused) // 2
        if bears(rate(middle)):
            borne = middle
        else:
            refused = middle
    if confirmed:
        while not bears(rate(borne)):
            borne -= 1
            if rate(borne) < LOWEST:
                return 0.0
    return rate(borne)
