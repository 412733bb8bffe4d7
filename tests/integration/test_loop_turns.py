"""What a turn does with what came: versions, pending labels, nothing new, doubt."""

from __future__ import annotations

import pytest

from perdure.errors import UsageError
from perdure.model.classifier import load_classifier
from perdure.records import Feedback
from perdure.turn import TurnResult

LENIENT = {
    "judge__confidence": 0.51,
    "judge__margin": 1.0,
    "judge__min_rows": 2,
    "gate__known": 1.0,
    "lora__epochs": 2,
}


def outcomes(result: TurnResult) -> dict[str, str]:
    return {one.kind: one.outcome for one in result.candidates}


def test_the_first_version_comes_from_labelled_rows(desk):
    desk.teach("refund", "parcel")
    stages: list[str] = []
    result = desk.turn(stage=stages.append, lora__enabled=False)
    assert (result.number, result.champion_before, result.champion) == (1, None, "v000001-head")
    assert outcomes(result) == {"first": "promote"}
    assert result.promoted
    assert not result.empty
    assert result.gate == {"learn": 40, "skip": 0, "quarantine": 0, "pseudo": 0, "ignore": 0}
    assert result.ingested["interactions"] == result.ingested["joined"] == 40
    assert stages[:3] == ["ingest", "ingest", "freeze"]
    assert stages[-1] == "finish"
    registry = desk.registry()
    assert [entry.version for entry in registry.promotions()] == ["v000001-head"]
    card = registry.card("v000001-head")
    assert card.labels == ("parcel", "refund")
    assert (card.turn, card.seed, card.parent, card.kind) == (1, 3, None, "first")
    assert {"model.json", "head.safetensors", "leverage.safetensors", "report.html"} <= set(card.files)
    assert desk.statistics().counts == {"parcel": 20, "refund": 20}
    with desk.memory() as memory:
        assert memory.turn().number == 2
        assert [TurnResult.decode(text) for text in memory.history(5)] == [result]
        assert card.memory_digest == memory.digest()


def test_the_first_version_is_worth_something(desk, sentences):
    desk.teach("refund", "parcel", "login")
    desk.turn(lora__enabled=False)
    folder = desk.registry().fetch("v000001-head", desk.folder / "other-cache")
    classifier = load_classifier(folder, "v000001-head", batch=8)
    rows = [(text, label) for label in ("refund", "parcel", "login") for text in sentences(label, 10, seed=9)]
    right = [
        name == label for name, (_, label) in zip(classifier.scores([t for t, _ in rows]).names(), rows, strict=True)
    ]
    assert sum(right) >= 27


def space(desk) -> str:
    """Names the space of the champion's embeddings."""
    name = desk.registry().champion().version
    return load_classifier(desk.registry().fetch(name, desk.folder / "other-cache"), name, batch=8).space


def test_a_head_update_adds_labels(desk):
    desk.teach("refund", "parcel")
    desk.turn(lora__enabled=False)
    desk.teach("login", "refund", name="more", at=100.0, seed=1)
    result = desk.turn(lora__enabled=False)
    assert outcomes(result) == {"head": "promote"}
    assert result.champion == "v000002-head"
    with desk.memory() as memory:
        # What earlier turns brought can be asked for neighbours; this turn's rows must not vouch for themselves.
        past = memory.embedded(space(desk))
        assert {sample.label for sample in memory.samples() if sample.key in past} == {"refund", "parcel"}
        assert len(past) == 40
    card = desk.registry().card("v000002-head")
    assert card.labels == ("login", "parcel", "refund")
    assert card.parent == "v000001-head"
    assert desk.statistics().counts == {"login": 20, "parcel": 20, "refund": 40}


def test_a_label_with_too_few_examples_waits_and_becomes_a_class_later(desk):
    desk.teach("refund", "parcel")
    desk.send([("where is my card", "card"), ("my card is lost", "card")], name="few", at=50.0)
    desk.turn(lora__enabled=False)
    with desk.memory() as memory:
        assert memory.counts().pending == {"card": 2}
        assert set(memory.classes()) == {"parcel", "refund"}
    assert desk.registry().card("v000001-head").labels == ("parcel", "refund")
    # Its rows are in the statistics nevertheless: none of them is lost.
    assert desk.statistics().counts["card"] == 2
    desk.teach("card", name="more", at=100.0)
    result = desk.turn(lora__enabled=False)
    assert outcomes(result) == {"head": "promote"}
    assert desk.registry().card("v000002-head").labels == ("card", "parcel", "refund")
    with desk.memory() as memory:
        assert memory.counts().pending == {}
        assert memory.classes()["card"] == 2
    assert desk.statistics().counts["card"] == 22


def test_one_label_is_too_few_and_the_turn_goes_on_when_another_comes(desk):
    desk.teach("refund")
    desk.send([("where is my parcel", "parcel")], name="few", at=50.0)
    with pytest.raises(UsageError, match=r"'refund' \(20\), 'parcel' \(1\): add rows"):
        desk.turn()
    with desk.memory() as memory:
        # Not frozen: what comes next must reach this turn.
        assert memory.turn().stage == "open"
        assert memory.counts().fresh == 21
    desk.teach("parcel", name="more", at=100.0)
    result = desk.turn(lora__enabled=False)
    assert (result.number, outcomes(result)) == (1, {"first": "promote"})
    assert desk.statistics().counts == {"refund": 20, "parcel": 21}


def test_nothing_new_is_an_empty_turn(desk):
    assert desk.turn() == TurnResult(1, None, None, note="nothing new", ingested=_none())
    desk.teach("refund", "parcel")
    desk.turn(lora__enabled=False)
    stages: list[str] = []
    result = desk.turn(stage=stages.append)
    assert result.empty
    assert not result.promoted
    assert (result.number, result.champion, result.note) == (2, "v000001-head", "nothing new")
    assert stages == ["ingest"]
    assert desk.registry().versions() == ("v000001-head",)
    with desk.memory() as memory:
        assert len(memory.history(10)) == 1


def _none():
    from dataclasses import asdict

    from perdure.memory import IngestCounts

    return asdict(IngestCounts())


def test_the_same_rows_again_are_an_empty_turn(desk):
    desk.teach("refund", "parcel")
    desk.turn(lora__enabled=False)
    before = desk.statistics()
    desk.teach("refund", "parcel")
    result = desk.turn()
    assert result.empty
    assert result.ingested["repeated"] == 80
    after = desk.statistics()
    assert (after.gram == before.gram).all()
    assert after.counts == before.counts


def test_rows_that_nobody_labelled_start_no_turn_but_are_seen_by_the_next(desk, sentences):
    desk.teach("refund", "parcel")
    desk.turn(lora__enabled=False)
    desk.send([(text, None) for text in sentences("refund", 7, seed=5)], name="silent", at=100.0)
    result = desk.turn()
    assert result.empty
    assert result.ingested["interactions"] == 7
    desk.teach("parcel", name="more", at=200.0, seed=1, count=10)
    result = desk.turn(lora__enabled=False, gate__pseudo_labels=False)
    assert sum(result.gate.values()) == 17
    assert result.gate["ignore"] == 7
    assert desk.statistics().counts == {"refund": 20, "parcel": 30}


def test_a_lora_candidate_is_made_judged_and_kept_with_its_report(desk):
    desk.teach("refund", "parcel", count=30)
    result = desk.turn(**LENIENT)
    assert [one.version for one in result.candidates] == ["v000001-head", "v000001-lora"]
    assert outcomes(result)["lora"] in ("promote", "keep", "inconclusive")
    card = desk.registry().card("v000001-lora")
    assert card.parent == "v000001-head"
    assert {"adapter.safetensors", "ewc.safetensors", "report.html", "drift.html"} - set(card.files) in (
        set(),
        {"drift.html"},
    )
    assert card.verdict["outcome"] == outcomes(result)["lora"]
    assert card.verdict["sentence"] == result.candidates[1].sentence
    assert card.metrics["trained_rows"] > 0
    assert (result.champion == "v000001-lora") == (outcomes(result)["lora"] == "promote")


def test_a_challenger_that_wants_proof_goes_on_from_turn_to_turn(desk):
    strict = {"lora__epochs": 1, "gate__known": 1.0, "judge__confidence": 0.999}
    desk.teach("refund", "parcel", count=30)
    assert outcomes(desk.turn(**strict))["lora"] == "inconclusive"
    desk.teach("login", name="more", at=100.0, count=30)
    assert outcomes(desk.turn(**strict))["lora"] == "inconclusive"
    registry = desk.registry()
    first, second = registry.card("v000001-lora"), registry.card("v000002-lora")
    assert first.notes == ()
    assert second.notes == ("It was to go on from v000001-lora, whose verdict was inconclusive.",)
    assert (first.metrics["looks"], second.metrics["looks"]) == (1.0, 2.0)
    # Only what begins with an adapter has an anchor to be held to.
    assert first.metrics["ewc_penalty"] == 0.0
    assert second.metrics["ewc_penalty"] > 0.0
    registry.promote("v000001-head", reason="by hand", by="ann")
    desk.teach("card", name="again", at=200.0, count=30)
    desk.turn(**strict)
    assert registry.card("v000003-lora").notes == ()
    assert registry.card("v000003-lora").metrics["ewc_penalty"] == 0.0


def test_too_few_rows_make_no_lora_candidate(desk):
    desk.teach("refund", "parcel")
    result = desk.turn(lora__min_rows=1000)
    assert outcomes(result) == {"first": "promote"}


def test_wrong_labels_are_put_into_quarantine_but_reach_the_head(desk, sentences):
    desk.teach("refund", "parcel", count=40)
    desk.turn(lora__enabled=False)
    wrong = desk.send([(text, "parcel") for text in sentences("refund", 5, seed=4)], name="wrong", at=100.0)
    result = desk.turn(lora__enabled=False, gate__confident=0.5, gate__neighbours=3)
    assert result.gate["quarantine"] == len(wrong)
    with desk.memory() as memory:
        doubtful = memory.quarantined()
    assert sorted(one.id for one in doubtful) == wrong
    assert all("the champion says 'refund'" in one.reason for one in doubtful)
    assert {one.label for one in doubtful} == {"parcel"}
    # The head takes every label, whatever the gate says.
    assert desk.statistics().counts == {"refund": 40, "parcel": 45}


def test_a_correction_takes_the_old_label_out_of_the_head(desk):
    ids = desk.teach("refund", "parcel")
    desk.turn(lora__enabled=False)
    desk.record([Feedback(time=500.0, interaction=ids[0], label="parcel")])
    result = desk.turn(lora__enabled=False)
    assert result.ingested["corrected"] == 1
    assert desk.statistics().counts == {"refund": 19, "parcel": 21}


def test_a_turn_says_what_it_did_on_one_line(desk):
    desk.teach("refund", "parcel")
    line = desk.turn(lora__enabled=False).line()
    assert line.startswith("turn 1: learn 40; v000001-head promote in ")
    assert line.endswith("; serving v000001-head")


def test_the_threads_that_are_set_are_used(desk, monkeypatch):
    asked: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", asked.append)
    desk.turn(model__threads=0)
    assert asked == []
    desk.turn(model__threads=1)
    assert asked == [1]
