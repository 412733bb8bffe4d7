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
from contestants.sequential import Sequential

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
    all_layers: bool = False
    """Learns from the means of all hidden states, as Perdure does, not of the last one alone."""
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
        lambda it: RandomFeaturesRidge(
            it, size=it.recipe.random_features, bandwidth=it.recipe.bandwidth, ridge=it.recipe.ridge
        ),
        ("random_features", "bandwidth", "ridge", "ridge_scale"),
        "frozen encoder, random features and ridge regression in closed form",
        trains=False,
    ),
    "slda_all": Entrant(
        StreamingLda, ("shrinkage",), "streaming LDA on the means of all layers", trains=False, all_layers=True
    ),
    "ridge_all": Entrant(
        lambda it: RandomFeaturesRidge(
            it, size=it.recipe.all_random_features, bandwidth=it.recipe.all_bandwidth, ridge=it.recipe.all_ridge
        ),
        ("all_random_features", "all_bandwidth", "all_ridge", "ridge_scale"),
        "random features of all layers and ridge regression: what Perdure's own head is made of, alone",
        trains=False,
        all_layers=True,
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
        None,
        (*NETWORK, "epochs", "ewc", "fisher_decay"),
        "Avalanche's EWCPlugin on the same LoRA; it squares gradients of batches' means, so the same λ holds less",
        start=avalanche_ewc,
    ),
    "avalanche_replay": Entrant(
        None, (*NETWORK, "epochs"), "Avalanche's ReplayPlugin on the same LoRA", start=avalanche_replay
    ),
    "perdure": Entrant(None, (), "`perdure backtest` with its defaults", start=perdure),
}
