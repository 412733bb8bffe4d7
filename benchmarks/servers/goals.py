"""What was to be reached, and what was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from servers.entrants import BARE_LOOP, BASELINE, EXPORT, PERDURE, TWO_SPACES

RATE = "rps_at_p99_50ms"
FIRST = "p50_1_connection_ms"
FLAT = 1.05
"""Memory is flat where it grew by no more than this factor."""


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal; `found` is None where it was not measured."""

    goal: str
    must: float
    aim: float | None
    found: float | None
    at_least: bool

    def to_json(self) -> dict[str, Any]:
        return {
            "goal": self.goal,
            "target": f"{'>=' if self.at_least else '<='} {self.must:g}",
            "aim": None if self.aim is None else f"{'>=' if self.at_least else '<='} {self.aim:g}",
            "found": self.found,
            "met": None if self.found is None else self._reaches(self.must),
            "aim_met": None if self.found is None or self.aim is None else self._reaches(self.aim),
        }

    def _reaches(self, bound: float) -> bool:
        assert self.found is not None
        return self.found >= bound if self.at_least else self.found <= bound


def ratios(contestants: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Perdure's figures over those of the others; None where one is missing or nothing was borne."""
    ours = contestants.get(PERDURE, {})
    others = {name: found for name, found in contestants.items() if name != PERDURE}
    return {
        "rps_at_p99_50ms": {name: over(ours.get(RATE), found.get(RATE)) for name, found in others.items()},
        "p50_1_connection_ms": {name: over(ours.get(FIRST), found.get(FIRST)) for name, found in others.items()},
        "best_peer": best(contestants, peers(contestants)),
        "best_peer_over_our_export": best(contestants, exports(contestants)),
        "cost_of_two_spaces": over(ours.get(RATE), contestants.get(TWO_SPACES, {}).get(RATE)),
    }


def goals(
    contestants: Mapping[str, Mapping[str, Any]],
    *,
    swap: Mapping[str, Any],
    memory: Mapping[str, Any],
    accuracy: Mapping[str, Any],
) -> list[Goal]:
    """All goals of the benchmark."""
    found = ratios(contestants)
    rates, peer, export = found[RATE], found["best_peer"], found["best_peer_over_our_export"]
    loss = accuracy.get("loss_points")
    return [
        Goal("requests/s at p99 <= 50 ms over FastAPI with a pipeline", 6, 9, rates.get(BASELINE), True),
        Goal("requests/s at p99 <= 50 ms over the best peer", 3, 4, rates.get(peer), True),
        Goal("requests/s at p99 <= 50 ms over the best peer with our export", 1.5, 2, rates.get(export), True),
        Goal("requests/s at p99 <= 50 ms over the bare loop's sentences/s", 0.6, 0.8, rates.get(BARE_LOOP), True),
        Goal("p50 at one connection over the bare loop's single call", 2.0, 1.4, found[FIRST].get(BARE_LOOP), False),
        Goal("points of accuracy lost against float32", 0.3, 0.1, loss, False),
        Goal("p99 with a swap each second over p99 without", 1.5, 1.1, swap.get("p99_ratio"), False),
        Goal("memory after the swaps over memory after the first ten", FLAT, None, memory.get("growth"), False),
        Goal("cost of two feature spaces over one", 1.6, None, found["cost_of_two_spaces"], False),
    ]


def peers(contestants: Mapping[str, Any]) -> list[str]:
    """The names of those that are served as their users run them."""
    ours = (PERDURE, TWO_SPACES, BARE_LOOP)
    return [name for name in contestants if name not in ours and not name.endswith(EXPORT)]


def exports(contestants: Mapping[str, Any]) -> list[str]:
    """The names of peers over our exported model."""
    return [name for name in contestants if name.endswith(EXPORT)]


def best(contestants: Mapping[str, Mapping[str, Any]], names: list[str]) -> str | None:
    """Which of `names` bears most; None where none was measured."""
    measured = [name for name in names if contestants[name].get(RATE)]
    return max(measured, key=lambda name: float(contestants[name][RATE]), default=None)


def over(ours: float | None, theirs: float | None) -> float | None:
    return None if ours is None or not theirs else round(ours / theirs, 3)
