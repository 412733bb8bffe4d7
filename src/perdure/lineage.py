"""Which version a LoRA update goes on from."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.errors import VersionDamaged, VersionNotFound
from perdure.registry import JUDGE, Registry
from perdure.turn import CandidateResult, TurnResult

LOOK_BACK = 20
"""Turns in which a challenger is looked for."""

PROMOTIONS = 100
"""Promotions that are looked through for what people did since: a turn makes two at most."""

HARMLESS = frozenset({"gain", "latency"})
"""Checks that a challenger may fail and yet be worth going on from: it was not better, or is slow, but did no harm."""


def challenger_in(history: Sequence[str], registry: Registry) -> str | None:
    """The last LoRA candidate that was kept out for nothing but want of proof; None where the champion is to be taken.

    What one turn teaches is seldom enough to be proved on a few hundred rows. If every update began again at the
    champion, no challenger would ever know more than that; so it goes on from the challenger, which is thereby trained
    on all turns since, and asked again after each of them. One that did harm is dropped, and so is one that is older
    than what a person promoted or rolled back.

    Args:
        history: summaries of the last turns, oldest first.
        registry: where candidates and promotions are.
    """
    last = _last_challenger(history)
    if last is None or last.outcome not in ("keep", "inconclusive"):
        return None
    try:
        card = registry.card(last.version)
    except (VersionNotFound, VersionDamaged):
        return None
    checks = (card.verdict or {}).get("checks", ())
    if any(check["passed"] is False and check["name"] not in HARMLESS for check in checks):
        return None
    if any(entry.by != JUDGE and entry.at >= card.created for entry in registry.promotions(PROMOTIONS)):
        return None
    return last.version


def _last_challenger(history: Sequence[str]) -> CandidateResult | None:
    for summary in reversed(history):
        for candidate in TurnResult.decode(summary).candidates:
            if candidate.kind == "lora":
                return candidate
    return None
