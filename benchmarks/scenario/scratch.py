"""What retraining from scratch at each session would cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contestants.backbone import Backbone
from contestants.base import Context, Order
from contestants.contest import contend, whole
from contestants.entrants import ENTRANTS
from contestants.features import FrozenFeatures
from contestants.recipe import Recipe

JOINT = "joint_lora"


@dataclass(frozen=True, slots=True)
class ScratchCost:
    """CPU-seconds of training joint LoRA anew on all rows so far."""

    cpu_seconds: tuple[float, ...]
    """After each session."""
    measured: bool
    """At each session; otherwise only after the last one, and the others are scaled by their rows."""
    source: str
    setup: Mapping[str, Any]
    """What it was measured with."""


def scratch_from_file(path: Path, order: Order) -> ScratchCost | None:
    """The cost in a result of `continual.py`; None where there is none of this order."""
    if not path.exists():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    for run in found["runs"]:
        same = (run["contestant"], run["order"]) == (JOINT, order.name) and "reduced" not in run["settings"]
        if same and len(run["sessions"]) in (1, len(order.sessions)):
            costs = [float(one["cpu_seconds"]) for one in run["sessions"]]
            return _cost(costs, order, f"{path.name}, seed {run['seed']}", found["setup"])
    return None


def measured_scratch(
    order: Order, model: str, *, memory: int, seed: int, features: Path, setup: Mapping[str, Any]
) -> ScratchCost:
    """Trains once, on all rows, as the contestant of `continual.py` does after the last session."""
    backbone = Backbone(model)
    frozen = FrozenFeatures(backbone, features)
    make = ENTRANTS[JOINT].make
    assert make is not None
    contestant = make(Context(backbone, frozen, memory, seed, Recipe()))
    outcome = contend(contestant, whole(order), frozen, memory=None)
    return _cost([one.cpu_seconds for one in outcome.sessions], order, "trained here", setup)


def read_scratch(path: Path) -> ScratchCost | None:
    """What `write_scratch` wrote; None where there is nothing."""
    if not path.exists():
        return None
    fields = json.loads(path.read_text(encoding="utf-8"))
    return ScratchCost(**{**fields, "cpu_seconds": tuple(fields["cpu_seconds"])})


def write_scratch(cost: ScratchCost, path: Path) -> None:
    """Writes the cost, at once or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(cost), indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _cost(costs: list[float], order: Order, source: str, setup: Mapping[str, Any]) -> ScratchCost:
    if len(costs) == len(order.sessions):
        return ScratchCost(tuple(costs), True, source, dict(setup))
    rows, scaled, total = 0, [], sum(len(session.rows) for session in order.sessions)
    for session in order.sessions:
        rows += len(session.rows)
        scaled.append(costs[-1] * rows / total)
    return ScratchCost(tuple(scaled), False, source, dict(setup))
