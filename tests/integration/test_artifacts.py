"""A turn writes what serving needs, and the judge looks at that very thing."""

from __future__ import annotations

import json

import pytest

from perdure import artifact
from perdure.engine.exporter import Export
from perdure.engine.load import load_version
from perdure.engine.served import ServedClassifier
from perdure.errors import ExportError
from perdure.judge.verdict import judge


@pytest.fixture(scope="module")
def graphs():
    """One exporter for the module: an encoder's graph takes seconds."""
    return artifact.Exporter()


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch, graphs):
    monkeypatch.setattr(artifact, "Exporter", lambda: graphs)
    return {"lora__enabled": False, "model__export": "auto", "judge__judge_latency": True}


def precision(desk, name: str) -> str | None:
    registry = desk.registry()
    if "engine.json" not in registry.card(name).files:
        return None
    return json.loads(registry.read(name, "engine.json"))["precision"]


def test_a_version_is_exported_and_judged_as_it_is_served(desk, exporting, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "perdure.trial.judge", lambda *args, **named: seen.append(named["artifact"]) or judge(*args, **named)
    )
    desk.teach("refund", "parcel")
    desk.turn(**exporting)
    desk.teach("login", name="more", at=100.0)
    result = desk.turn(**exporting)
    assert result.champion == "v000002-head"
    assert [precision(desk, name) for name in ("v000001-head", "v000002-head")] == ["int8", "int8"]
    served = load_version(desk.registry().fetch("v000002-head", desk.folder / "cache"), "v000002-head", batch=16)
    assert isinstance(served, ServedClassifier)
    assert served.labels == ("login", "parcel", "refund")
    first, second = seen
    assert first.champion_seconds_per_text is None
    assert second.champion_seconds_per_text > 0
    assert 0.99 <= second.agreement <= 1
    card = desk.registry().card("v000002-head")
    assert card.metrics["agreement"] == second.agreement
    # The encoder stands once for both.
    files = [desk.registry().card(name).files["encoder.onnx"] for name in ("v000001-head", "v000002-head")]
    assert files[0] == files[1]
    assert files[0].shared


def test_where_eight_bits_answer_otherwise_it_is_float32(desk, exporting, monkeypatch, graphs):
    export = graphs.export

    def coarse(classifier, precision, before=None):
        made = export(classifier, "float32", before)
        if precision == "float32":
            return made
        # As if the encoder had lost what it knows: every text is empty.
        tokenizer = json.loads(made.shared["tokenizer.json"])
        tokenizer["model"]["vocab"] = {word: min(row, 3) for word, row in tokenizer["model"]["vocab"].items()}
        return Export(made.files, {**made.shared, "tokenizer.json": json.dumps(tokenizer).encode()})

    monkeypatch.setattr(graphs, "export", coarse)
    desk.teach("refund", "parcel")
    desk.turn(**exporting)
    assert precision(desk, "v000001-head") == "float32"
    card = desk.registry().card("v000001-head")
    assert card.metrics["agreement"] == 1.0
    assert any(note.startswith("In int8 it would agree with itself on") for note in card.notes)


def test_int8_and_nothing_else_is_kept_back_by_the_judge(desk, exporting, monkeypatch):
    monkeypatch.setattr(artifact, "AGREEMENT", 2.0)
    monkeypatch.setattr("perdure.judge.checks.AGREEMENT", 2.0)
    desk.teach("refund", "parcel")
    result = desk.turn(**{**exporting, "model__export": "int8"})
    assert result.champion is None
    assert precision(desk, "v000001-head") == "int8"


def test_what_cannot_be_exported_is_served_by_torch(desk, exporting, monkeypatch, graphs, caplog):
    def refuse(*args):
        raise ExportError("torch cannot export this: set model.export to none")

    monkeypatch.setattr(graphs, "export", refuse)
    desk.teach("refund", "parcel")
    result = desk.turn(**exporting)
    assert result.champion == "v000001-head"
    assert precision(desk, "v000001-head") is None
    assert "It could not be exported: torch serves it." in desk.registry().card("v000001-head").notes
    assert "will be served by torch" in caplog.text
    desk.teach("login", name="more", at=100.0)
    with pytest.raises(ExportError):
        desk.turn(**{**exporting, "model__export": "float32"})


def test_a_damaged_artifact_is_no_number(desk, exporting, monkeypatch):
    finite = ServedClassifier.finite
    monkeypatch.setattr(ServedClassifier, "finite", lambda self: (finite(self), False)[1])
    desk.teach("refund", "parcel")
    assert desk.turn(**exporting).champion is None
