"""Which version a LoRA update goes on from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from perdure.errors import RegistryError, RegistryUnavailable, VersionDamaged, VersionNotFound
from perdure.registry import JUDGE, Card, Registry
from perdure.turn import CandidateResult, TurnResult

CHALLENGERS = ("challenger", "lora")
"""Steps of a turn whose candidates have an adapter that is new: an earlier turn's, asked again, and the turn's own."""

LOOKS = 10
"""Turns for which one challenger is trained on and judged; then the next begins at the champion again."""

PROMOTIONS = 100
"""Promotions that are looked through for what people did since: a turn makes three at most."""


@dataclass(frozen=True, slots=True)
class Undecided:
    """A LoRA candidate on which the judge could not decide."""

    version: str
    looks: int
    """Turns in which the judge has looked at it, or at what it came from."""
    asked: int = 0
    """Rows that had come since it was trained when it was last asked about them."""


def undecided_in(history: Sequence[str], registry: Registry, *, unlearned: int = 0) -> Undecided | None:
    """The last challenger, if its verdict was inconclusive; None where the champion is to be gone on from.

    What one turn teaches is seldom enough to be proved on a few hundred rows. If every update began again at the
    champion, no challenger would ever know more than that; so it goes on from the challenger, which is thereby trained
    on all turns since, and asked again in each of them: about what has come, before it learns from that, and after it.
    One that failed a check is dropped, and so is one that is older than what a person promoted or rolled back, or than
    an erasure of labels, or has been looked at in `LOOKS` turns.

    Args:
        history: summaries of the last turns, oldest first.
        registry: where candidates and promotions are.
        unlearned: what erasures have taken out of the head until now, as memory counts it.
    """
    last, promotion = _last_candidate(history)
    if last is None or last.outcome != "inconclusive":
        return None
    try:
        card = registry.card(last.version)
    except (VersionNotFound, VersionDamaged):
        return None
    looks = int(card.metrics.get("looks", 1))
    if looks >= LOOKS or card.unlearned < unlearned:
        return None
    # Whoever stepped in while that turn was under way was not known to it.
    if any(entry.by != JUDGE and entry.number >= promotion for entry in registry.promotions(PROMOTIONS)):
        return None
    return Undecided(last.version, looks, int(card.metrics.get("since", 0)))


def _last_candidate(history: Sequence[str]) -> tuple[CandidateResult | None, int]:
    """The last challenger and the number that its turn's first promotion would have had."""
    for summary in reversed(history):
        result = TurnResult.decode(summary)
        for candidate in reversed(result.candidates):
            if candidate.kind in CHALLENGERS:
                return candidate, result.promotion
    return None, 0


def owes_erasure(history: Sequence[str], registry: Registry, *, unlearned: int) -> bool:
    """Whether the champion's head knows what was asked to be forgotten, and no turn has tried to replace this one.

    A turn whose head came too late, or whose champion a person has replaced since, has used up the erasure, and nothing
    else would start the next one.

    Args:
        history: summaries of the last turns, oldest first.
        registry: where the champion is.
        unlearned: what erasures have taken out of the head until now, as memory counts it.
    """
    champion = registry.champion()
    if champion is None or not history:
        return False
    try:
        knows = registry.card(champion.version).unlearned < unlearned
    except (VersionNotFound, VersionDamaged):
        # A turn with something to learn will say so.
        return False
    last = TurnResult.decode(history[-1])
    late = any(one.outcome == "stale" for one in last.candidates)
    return knows and (late or last.champion != champion.version)


def knows_forgotten(version: str, registry: Registry) -> bool | None:
    """Whether the head of `version` knows what a later version has unlearned: erasures came between the two.

    This is asked after a promotion, which stands whatever comes of the question: None where its own card or the store
    cannot be read; cards of others that cannot be read are passed over.
    """
    try:
        mine = registry.card(version)
        # The latest knows most of what was forgotten.
        for name in reversed(registry.versions()):
            if _unlearned_since(mine, name, registry):
                return True
    except RegistryError:
        return None
    return False


def _unlearned_since(mine: Card, name: str, registry: Registry) -> bool:
    try:
        other = registry.card(name)
    except RegistryUnavailable:
        raise
    except RegistryError:
        return False
    # An earlier one that has unlearned more is of another memory, which counted for itself.
    return other.created > mine.created and other.unlearned > mine.unlearned
