"""The scenarios: what is done to the stream, and with which settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from contestants.base import Order
from contestants.orders import reduced
from scenario.streams import Recorded, delayed, first_labels, noisy, recorded, with_history

NOISE = 0.2
"""Share of labels that are wrong."""
LABELLED, LATE = 0.3, 1
"""Share of rows that anybody labels, and the sessions that their labels come late."""
TIMES = 10
"""How much longer the long history is."""
BASE, NOISY, DELAYED = "base_10x15", f"noise_{100 * NOISE:.0f}", f"delayed_{100 * LABELLED:.0f}"
SHUFFLED, SHUFFLED_15 = "shuffled_10x15", "shuffled_15x10"
WITHOUT_HEAD = "without_analytic_head"
ABLATIONS: Mapping[str, tuple[str, ...]] = {
    "without_ewc": ("lora.ewc=0",),
    "without_replay": ("lora.replay_rows=0",),
    "without_gate": ("gate.enabled=false",),
    WITHOUT_HEAD: ("lora.shares=[1.0]",),
    "without_lora": ("lora.enabled=false",),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How much of the data is taken."""

    labels: int | None = None
    """Sessions up to the one that brings this label; None takes all."""
    rows: tuple[int, int] | None = None
    """Rows of a label to learn from and to be evaluated on; None takes all."""
    settings: tuple[str, ...] = ()
    """What is cheaper than the defaults."""
    history: int = 20
    """Rows of a label in the short history."""
    last: int = 10
    """Rows of a label in the update after it."""
    repeats: int = 3
    """Of each history, in turns."""

    def of(self, order: Order) -> Order:
        """The part of `order` that is taken."""
        if self.labels is not None:
            order = first_labels(order, self.labels)
        return order if self.rows is None else reduced(order, stream=self.rows[0], evaluation=self.rows[1])


FULL = Size()
QUICK = Size(
    labels=30,
    rows=(12, 5),
    settings=("model.features=1024", "lora.epochs=1", "lora.fisher_samples=16"),
    history=10,
    last=4,
    repeats=1,
)


@dataclass(frozen=True, slots=True)
class Scenario:
    """A stream and settings, under a name."""

    name: str
    about: str
    make: Callable[[], Recorded]
    settings: tuple[str, ...] = ()


def scenarios(order_of: Callable[[str], Order], size: Size, seed: int) -> tuple[Scenario, ...]:
    """All scenarios, in the order in which they are run.

    Args:
        order_of: gives the order of a name, whole.
        size: how much is taken of it.
        seed: of what happens to the stream.
    """

    def plain(name: str) -> Recorded:
        return recorded(size.of(order_of(name)))

    def base() -> Recorded:
        return plain("10x15")

    found = [
        Scenario(BASE, "fifteen new labels in each session, in the order of the file", base),
        Scenario(SHUFFLED, "labels dealt into ten sessions by chance", partial(plain, "10x15s")),
        Scenario(SHUFFLED_15, "labels dealt into fifteen sessions by chance", partial(plain, "15x10s")),
        Scenario(
            NOISY,
            f"{NOISE:.0%} of the labels replaced by another of those that have come",
            lambda: noisy(base(), NOISE, seed),
        ),
        Scenario(
            DELAYED,
            f"{LABELLED:.0%} of the rows labelled, each label one session late",
            lambda: delayed(base(), LABELLED, LATE, seed),
        ),
    ]
    found += [
        Scenario(name, f"as {BASE}, with {' '.join(settings)}", base, settings) for name, settings in ABLATIONS.items()
    ]
    for repeat in range(size.repeats):
        # What the gate lets through depends on what the champion knows: without it both updates learn from the same.
        # Whether the penalty is due to be chosen anew depends on how much has come: of one there is no choice.
        found += [
            Scenario(
                history_name(times, repeat),
                f"{times * size.history} rows of each label, then an update with {size.last} of each",
                partial(
                    with_history,
                    size.of(order_of("10x15")),
                    history=size.history,
                    last=size.last,
                    times=times,
                    seed=seed,
                ),
                ("gate.enabled=false", "model.ridge=[0.03]"),
            )
            for times in (1, TIMES)
        ]
    return tuple(found)


def history_name(times: int, repeat: int) -> str:
    """The name of a scenario with a history `times` as long."""
    return f"history_x{times}_{repeat}"
