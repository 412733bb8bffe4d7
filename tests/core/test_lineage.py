"""Which challenger an update goes on from."""

from __future__ import annotations

import json

import pytest

from perdure.lineage import challenger_in
from perdure.records import now
from perdure.registry import JUDGE, Card, EncoderCard, Registry
from perdure.turn import CandidateResult, TurnResult


@pytest.fixture
def registry() -> Registry:
    made = Registry("memory://")
    made.write(card("v1-head"), {"head.safetensors": b"w"})
    made.promote("v1-head", reason="the first", by=JUDGE)
    return made


def card(name: str, **checks: bool | None) -> Card:
    """A version whose candidate met these checks."""
    return Card(
        name=name,
        kind="lora" if name.endswith("lora") else "head",
        encoder=EncoderCard(name="mini", fingerprint="f00"),
        labels=("a", "b"),
        created=now(),
        verdict={"outcome": "keep", "checks": [{"name": key, "passed": value} for key, value in checks.items()]},
    )


def turn(number: int, **outcomes: str) -> str:
    """The summary of a turn whose candidates, named by their kinds, met these outcomes."""
    candidates = [
        CandidateResult(f"v{number}-{kind}", kind, outcome, "", 1.0, 1.0) for kind, outcome in outcomes.items()
    ]
    return json.dumps(TurnResult(number, "v1-head", "v1-head", tuple(candidates)).to_json())


@pytest.mark.parametrize("outcome", ["keep", "inconclusive"])
@pytest.mark.parametrize("checks", [{"gain": False, "known_labels": True}, {"gain": True, "known_labels": None}, {}])
def test_what_only_wanted_proof_is_gone_on_from(
    registry: Registry, outcome: str, checks: dict[str, bool | None]
) -> None:
    registry.write(card("v2-lora", **checks), {"adapter.safetensors": b"a"})
    assert challenger_in([turn(1, first="promote"), turn(2, head="promote", lora=outcome)], registry) == "v2-lora"


@pytest.mark.parametrize("check", ["known_labels", "label_groups", "negative_flips", "calibration", "finite"])
def test_what_did_harm_is_dropped(registry: Registry, check: str) -> None:
    registry.write(card("v2-lora", gain=False, **{check: False}), {"adapter.safetensors": b"a"})
    assert challenger_in([turn(2, lora="keep")], registry) is None


@pytest.mark.parametrize("outcome", ["promote", "stale"])
def test_what_was_promoted_goes_on_as_the_champion(registry: Registry, outcome: str) -> None:
    registry.write(card("v2-lora"), {"adapter.safetensors": b"a"})
    registry.write(card("v3-lora"), {"adapter.safetensors": b"b"})
    assert challenger_in([turn(2, lora="keep"), turn(3, lora=outcome)], registry) is None


def test_turns_without_a_challenger_do_not_end_it(registry: Registry) -> None:
    registry.write(card("v2-lora"), {"adapter.safetensors": b"a"})
    assert challenger_in([turn(2, lora="keep"), turn(3, head="promote"), turn(4)], registry) == "v2-lora"


def test_the_last_one_counts(registry: Registry) -> None:
    registry.write(card("v2-lora"), {"adapter.safetensors": b"a"})
    registry.write(card("v3-lora", known_labels=False), {"adapter.safetensors": b"b"})
    assert challenger_in([turn(2, lora="keep"), turn(3, lora="keep")], registry) is None


def test_what_the_judge_promotes_since_does_not_end_it_but_what_people_do_does(registry: Registry) -> None:
    registry.write(card("v2-lora"), {"adapter.safetensors": b"a"})
    registry.write(card("v3-head"), {"head.safetensors": b"h"})
    history = [turn(2, lora="keep"), turn(3, head="promote")]
    registry.promote("v3-head", reason="better", by=JUDGE)
    assert challenger_in(history, registry) == "v2-lora"
    registry.rollback(reason="answers are odd", by="ann")
    assert challenger_in(history, registry) is None


def test_one_that_is_not_there_any_more_is_not_gone_on_from(registry: Registry) -> None:
    assert challenger_in([turn(2, lora="keep")], registry) is None
    assert challenger_in([], registry) is None
