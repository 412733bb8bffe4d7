"""Who takes part, under which name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from contestants.avalanche import avalanche_ewc, avalanche_replay
from contestants.base import Contestant, Context
from contestants.child import Task
from contestants.contest import Outcome
from contestants.frozen import NearestClassMean, NearestNeighbours, RandomFeaturesRidge, StreamingLda
from contestants.icarl import Icarl
from contestants.joint import Joint
from contestants.loop import perdure
from contestants.replay import DarkExperienceReplay, GreedyDumb
from contestants.tuned import Sequential

NETWORK = ("rank", "alpha", "learning_rate", "batch", "head_scale")
EWC = ("ewc", "fisher_decay", "fisher_rows")


@dataclass(frozen=True, slots=True)
class Entrant:
    """A contestant that runs here (`make`), or as a process of its own (`start`)."""

    make: Callable[[Context], Contestant] | None
    uses: tuple[str, ...]
    """Parts of the recipe that its figures depend on."""
    about: str
    start: Callable[[Task], Outcome] | None = None
    trains: bool = True
    """Trains the encoder."""
    keeps_all: bool = False
    """Keeps every row, whatever the budget: a ceiling, not a rival."""


ENTRANTS = {
    "naive_lora": Entrant(Sequential, (*NETWORK, "epochs"), "one LoRA trained on each session in turn"),
    "lora_ewc": Entrant(lambda it: Sequential(it, ewc=True), (*NETWORK, "epochs", *EWC), "the same with EWC"),
    "er": Entrant(lambda it: Sequential(it, replay=True), (*NETWORK, "epochs"), "LoRA with experience replay"),
    "er_ewc": Entrant(
        lambda it: Sequential(it, replay=True, ewc=True), (*NETWORK, "epochs", *EWC), "the same with EWC"
    ),
    "der++": Entrant(
        DarkExperienceReplay, (*NETWORK, "epochs", "der_alpha", "der_beta"), "LoRA with replay of logits and labels"
    ),
    "gdumb": Entrant(GreedyDumb, (*NETWORK, "scratch_epochs"), "LoRA from scratch on a balanced memory alone"),
    "icarl": Entrant(
        Icarl, (*NETWORK, "epochs", "similarity_scale"), "LoRA with distillation; nearest mean of herded exemplars"
    ),
    "ncm": Entrant(NearestClassMean, ("similarity_scale",), "frozen encoder, nearest class mean", trains=False),
    "slda": Entrant(StreamingLda, ("shrinkage",), "frozen encoder, streaming LDA", trains=False),
    "knn": Entrant(NearestNeighbours, ("neighbours",), "frozen encoder, nearest neighbours in memory", trains=False),
    "ridge": Entrant(
        RandomFeaturesRidge,
        ("random_features", "bandwidth", "ridge", "ridge_scale"),
        "frozen encoder, random features and ridge regression in closed form",
        trains=False,
    ),
    "joint_lora": Entrant(
        Joint, (*NETWORK, "epochs"), "LoRA from scratch on all data so far: the ceiling", keeps_all=True
    ),
    "joint_full": Entrant(
        lambda it: Joint(it, full=True),
        ("full_learning_rate", "batch", "head_scale", "epochs"),
        "the whole encoder from scratch on all data so far",
        keeps_all=True,
    ),
    "avalanche_ewc": Entrant(
        None, (*NETWORK, "epochs", "ewc"), "Avalanche's EWCPlugin on the same LoRA", start=avalanche_ewc
    ),
    "avalanche_replay": Entrant(
        None, (*NETWORK, "epochs"), "Avalanche's ReplayPlugin on the same LoRA", start=avalanche_replay
    ),
    "perdure": Entrant(None, (), "`perdure backtest` with its defaults", start=perdure),
}
