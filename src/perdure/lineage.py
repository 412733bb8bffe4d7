"""Which version a LoRA update goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.errors import VersionDamaged, VersionNotFound
from perdure.registry import JUDGE, Registry
from perdure.turn import CandidateResult, TurnResult

CHALLENGERS = ("challenger", "lora")
"""Steps of a turn whose candidates have an adapter that is new: an earlier turn's, asked again, and the turn's own."""

LOOKS = 10
"""Turns for which one challenger is trained on and judged; then the next begins at the champion again."""

PROMOTIONS = 100
"""Promotions that are looked through for what people did since: a turn makes two at most."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """A LoRA candidate on which the judge could not decide."""

    version: str
    looks: int
    """How often the judge has looked at it, or at what it came from."""


def undecided_in(history: Sequence[str], registry: Registry, *, unlearned: int = 0) -> Undecided | None:
    """The last challenger, if its verdict was inconclusive; None where the champion is to be gone on from.

    What one turn teaches is seldom enough to be proved on a few hundred rows. If every update began again at the
    champion, no challenger would ever know more than that; so it goes on from the challenger, which is thereby trained
    on all turns since, and asked again in each of them: about what has come, before it learns from that, and after it.
    One that failed a check is dropped, and so is one that is older than what a person promoted or rolled back, or than
    an erasure, or has been looked at `LOOKS` times.

    Args:
        history: summaries of the last turns, oldest first.
        registry: where candidates and promotions are.
        unlearned: what erasures have taken out of the head until now, as memory counts it.
    """
    last, seconds = _last_candidate(history)
    if last is None or last.outcome != "inconclusive":
        return None
    try:
        card = registry.card(last.version)
    except (VersionNotFound, VersionDamaged):
        return None
    looks = int(card.metrics.get("looks", 1))
    # Whoever stepped in while that turn was under way was not known to it.
    began = card.created - seconds
    if looks >= LOOKS or card.unlearned < unlearned:
        return None
    if any(entry.by != JUDGE and entry.at >= began for entry in registry.promotions(PROMOTIONS)):
        return None
    return Undecided(last.version, looks)


def _last_candidate(history: Sequence[str]) -> tuple[CandidateResult | None, float]:
    """The last challenger and the wall time of its turn."""
    for summary in reversed(history):
        result = TurnResult.decode(summary)
        for candidate in reversed(result.candidates):
            if candidate.kind in CHALLENGERS:
                return candidate, result.wall_seconds
    return None, 0.0
