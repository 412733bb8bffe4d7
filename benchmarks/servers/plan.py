"""How long everything is measured."""

from __future__ import annotations

from dataclasses import dataclass

P99_MS = 50.0
"""Milliseconds that the 99th percentile of latency may have at the rate that a server bears."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The sizes of a run."""

    rows_per_label: int
    """That models are fitted on."""
    sentences: int
    mixed: int
    """Texts of mixed length."""
    rounds: int
    """How often every contestant is started and measured, in turns; figures are medians over them."""
    closed: tuple[int, ...]
    """Connections of the closed loops."""
    warm_up_seconds: float
    """Before each measurement, with the same load."""
    closed_seconds: float
    open_seconds: float
    """Of each rate of the search; longer where a rate is low."""
    least_requests: int
    """That each rate is asked for, so that a 99th percentile is one."""
    step: float
    """Between two rates of the search, as a share."""
    confirmed: bool
    """Ask again at the rate that was found."""
    mixed_closed: tuple[int, ...]
    mixed_search: bool
    swap_rounds: int
    swap_seconds: float
    swaps: int
    """For memory."""
    bare_seconds: float


FULL = Plan(
    rows_per_label=100,
    sentences=3000,
    mixed=256,
    rounds=3,
    closed=(1, 8, 64, 256),
    warm_up_seconds=1.0,
    closed_seconds=8.0,
    open_seconds=8.0,
    least_requests=600,
    step=0.05,
    confirmed=True,
    mixed_closed=(1, 8, 64),
    mixed_search=True,
    swap_rounds=3,
    swap_seconds=10.0,
    swaps=100,
    bare_seconds=8.0,
)
QUICK = Plan(
    rows_per_label=10,
    sentences=1000,
    mixed=64,
    rounds=1,
    closed=(1, 8, 64, 256),
    warm_up_seconds=0.5,
    closed_seconds=1.5,
    open_seconds=2.5,
    least_requests=200,
    step=0.15,
    confirmed=False,
    mixed_closed=(8,),
    mixed_search=False,
    swap_rounds=1,
    swap_seconds=10.0,
    swaps=100,
    bare_seconds=1.5,
)
