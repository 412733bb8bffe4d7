"""Which challenger an update goes on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from perdure.errors import RegistryUnavailable
from perdure.lineage import LOOKS, Undecided, knows_forgotten, owes_erasure, undecided_in
from perdure.records import now
from perdure.registry import JUDGE, Card, EncoderCard, Registry
from perdure.turn import CandidateResult, TurnResult


@pytest.fixture
def registry() -> Registry:
    made = Registry("memory://")
    made.write(card("v1-head"), {"head.safetensors": b"w"})
    made.promote("v1-head", reason="the first", by=JUDGE)
    return made


def card(name: str, looks: int = 1) -> Card:
    return Card(
        name=name,
        kind="lora" if name.endswith("lora") else "head",
        encoder=EncoderCard(name="mini", fingerprint="f00"),
        labels=("a", "b"),
        created=now(),
        metrics={"looks": float(looks)},
    )


def turn(number: int, *, promotion: int = 2, champion: str = "v1-head", **outcomes: str) -> str:
    """The summary of a turn whose candidates, named by their kinds, met these outcomes."""
    candidates = [
        CandidateResult(f"v{number}-{kind}", kind, outcome, "", 1.0, 1.0) for kind, outcome in outcomes.items()
    ]
    result = TurnResult(number, "v1-head", champion, promotion=promotion, candidates=tuple(candidates))
    return json.dumps(result.to_json())


def test_what_was_not_decided_is_gone_on_from(registry: Registry) -> None:
    registry.write(card("v2-lora", looks=3), {"adapter.safetensors": b"a"})
    history = [turn(1, first="promote"), turn(2, head="promote", lora="inconclusive")]
    assert undecided_in(history, registry) == Undecided("v2-lora", 3)


@pytest.mark.parametrize("outcome", ["keep", "promote", "stale"])
def test_what_was_decided_is_not(registry: Registry, outcome: str) -> None:
    registry.write(card("v2-lora"), {"adapter.safetensors": b"a"})
    registry.write(card("v3-lora"), {"adapter.safetensors": b"b"})
    assert undecided_in([turn(2, lora="inconclusive"), turn(3, lora=outcome)], registry) is None


def test_turns_without_a_challenger_do_not_end_it(registry: Registry) -> None:
    registry.write(card("v2-lora"), {"adapter.safetensors": b"a"})
    assert undecided_in([turn(2, lora="inconclusive"), turn(3, head="promote"), turn(4)], registry) is not None


def test_one_challenger_is_not_looked_at_for_ever(registry: Registry) -> None:
    registry.write(card("v2-lora", looks=LOOKS - 1), {"adapter.safetensors": b"a"})
    registry.write(card("v3-lora", looks=LOOKS), {"adapter.safetensors": b"b"})
    assert undecided_in([turn(2, lora="inconclusive")], registry) is not None
    assert undecided_in([turn(3, lora="inconclusive")], registry) is None


def test_what_the_judge_promotes_since_does_not_end_it_but_what_people_do_does(registry: Registry) -> None:
    registry.write(card("v2-lora"), {"adapter.safetensors": b"a"})
    registry.write(card("v3-head"), {"head.safetensors": b"h"})
    history = [turn(2, lora="inconclusive"), turn(3, head="promote")]
    registry.promote("v3-head", reason="better", by=JUDGE)
    assert undecided_in(history, registry) is not None
    registry.rollback(reason="answers are odd", by="ann")
    assert undecided_in(history, registry) is None


def test_who_steps_in_while_a_turn_is_under_way_is_not_passed_over(registry: Registry) -> None:
    """Whatever the clocks say, and however often the turn was killed."""
    registry.write(card("v1-old"), {"head.safetensors": b"o"})
    registry.promote("v1-old", reason="safer", by="ann")
    registry.write(card("v2-lora"), {"adapter.safetensors": b"a"})
    assert undecided_in([turn(2, promotion=2, lora="inconclusive")], registry) is None
    assert undecided_in([turn(2, promotion=3, lora="inconclusive")], registry) is not None


def test_what_was_asked_is_known_of_one_that_was_asked_again(registry: Registry) -> None:
    made = card("v3-challenger")
    registry.write(made.model_copy(update={"metrics": {"looks": 2.0, "since": 40.0}}), {"adapter.safetensors": b"a"})
    history = [turn(2, lora="inconclusive"), turn(3, challenger="inconclusive")]
    assert undecided_in(history, registry) == Undecided("v3-challenger", 2, asked=40)


def test_one_that_is_not_there_any_more_is_not_gone_on_from(registry: Registry) -> None:
    assert undecided_in([turn(2, lora="inconclusive")], registry) is None
    assert undecided_in([], registry) is None


def test_an_erasure_since_then_ends_it(registry: Registry) -> None:
    """What was forgotten must not be trained on for more turns."""
    registry.write(card("v2-lora"), {"adapter.safetensors": b"a"})
    history = [turn(2, lora="inconclusive")]
    assert undecided_in(history, registry, unlearned=0) is not None
    assert undecided_in(history, registry, unlearned=1) is None


@pytest.mark.parametrize(
    ("last", "owed"),
    [
        (turn(2, head="promote"), False),
        (turn(2, head="keep"), False),
        (turn(2), False),
        (turn(2, head="stale"), True),
        (turn(2, champion="v2-head", head="promote"), True),
    ],
    ids=["promoted", "refused", "no candidate", "late", "replaced"],
)
def test_an_erasure_that_a_turn_has_used_up_in_vain_is_owed(registry: Registry, last: str, owed: bool) -> None:
    assert owes_erasure([turn(1, first="promote"), last], registry, unlearned=1) is owed
    assert not owes_erasure([last], registry, unlearned=0), "the champion knows nothing that it should not"
    assert not owes_erasure([], registry, unlearned=1)


def test_a_champion_that_cannot_be_read_owes_nothing_yet(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    registry.write(card("v2-head"), {"head.safetensors": b"h"})
    registry.promote("v2-head", reason="better", by="ann")
    assert owes_erasure([turn(2, head="stale")], registry, unlearned=1)
    (tmp_path / "versions" / "v2-head" / "card.json").write_text("{}", encoding="utf-8")
    assert not owes_erasure([turn(2, head="stale")], Registry(str(tmp_path)), unlearned=1)


def test_a_version_from_before_an_erasure_knows_what_was_forgotten(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    for number, unlearned in enumerate((0, 0, 2, 2), start=1):
        made = card(f"v{number}-head").model_copy(update={"unlearned": unlearned})
        registry.write(made, {"head.safetensors": b"h"})
    assert [knows_forgotten(f"v{number}-head", registry) for number in (1, 2, 3, 4)] == [True, True, False, False]
    # A memory made anew counts its erasures from 0: what was made before it is no reason for a warning.
    registry.write(card("v5-head"), {"head.safetensors": b"h"})
    assert not knows_forgotten("v5-head", registry)
    # Another one that cannot be read is no reason to say nothing.
    (tmp_path / "versions" / "v1-head" / "card.json").write_text("{}", encoding="utf-8")
    assert knows_forgotten("v2-head", Registry(str(tmp_path)))
    # One's own is: then nobody knows.
    assert knows_forgotten("v1-head", Registry(str(tmp_path))) is None


def test_a_card_of_a_newer_release_does_not_hide_what_others_say(tmp_path: Path) -> None:
    registry = Registry(str(tmp_path))
    for number, unlearned in enumerate((0, 2, 2), start=1):
        made = card(f"v{number}-head").model_copy(update={"unlearned": unlearned})
        registry.write(made, {"head.safetensors": b"h"})
    (tmp_path / "versions" / "v3-head" / "card.json").write_text('{"schema": 99}', encoding="utf-8")
    assert knows_forgotten("v1-head", Registry(str(tmp_path))) is True


def test_a_store_that_is_away_leaves_it_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry(str(tmp_path))
    registry.write(card("v1-head"), {"head.safetensors": b"h"})

    def away() -> tuple[str, ...]:
        raise RegistryUnavailable("the store is away")

    monkeypatch.setattr(registry, "versions", away)
    assert knows_forgotten("v1-head", registry) is None
