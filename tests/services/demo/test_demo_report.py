from __future__ import annotations

import json

import pytest

from perdure.config import Settings
from perdure.memory import Quarantined
from perdure.registry import Card, Registry
from perdure.registry.card import EncoderCard
from perdure_services.demo.progress import Answer, Score, SeenTurn
from perdure_services.demo.report import keep_reports, write_results


@pytest.fixture
def done(scenario, progress, turn_result):
    """A demo that is over."""
    progress.fitted("v1", 1)
    progress.scored(Score(30.0, 0, 0, "v1", 1.0, 1.0, False), 1)
    for number, request in enumerate(scenario.requests):
        right = number > 1
        label = request.label if right else "order"
        progress.answered(Answer(number, f"id-{number}", label, 0.8, "v1", True, 0.02))
        if request.said:
            progress.taught(number)
    progress.turned(SeenTurn(0, 0, turn_result(1, "v1")))
    progress.turned(SeenTurn(1, 4, turn_result(2, "v2", "keep", drift="Drift in 1 of 7 columns.", drifted=True)))
    for wave in scenario.waves:
        progress.compared(wave.number, [False] * len(wave.requests))
        progress.scored(Score(60.0 * wave.number, wave.end, wave.number, "v2", 0.9, 0.4, wave.number == 1), 2)
        progress.wave_ended(wave.number, 3.0)
    return progress


@pytest.fixture
def written(tmp_path, scenario, done):
    quarantined = [Quarantined("id-2", "contradicted", "refund my order", "order", 0.0)]
    return write_results(tmp_path / "out", scenario, Settings(), done, quarantined)


@pytest.fixture(autouse=True)
def _folder(tmp_path):
    (tmp_path / "out" / "versions" / "v2").mkdir(parents=True)
    (tmp_path / "out" / "versions" / "v2" / "report.html").write_text("judged")
    (tmp_path / "out" / "versions" / "v2" / "drift.html").write_text("drifted")


def test_the_page_says_what_happened(written):
    page = " ".join(written.report.read_text().replace("\xa0", " ").split())
    for part in (
        "After 2 waves with 2 new intents, what serves is right on 90.0 % of the exam",
        "version 1, left as it was, on 40.0 %",
        "none of them failed",
        "Accuracy over time",
        "Live answers",
        "Wave by wave",
        "What the judge said",
        "Keep: a reason.",
        "1 label that customers gave were wrong on purpose; 1 of these are in quarantine, and beside them 0 rows",
        "Drift in 1 of 7 columns.",
        'href="versions/v2/report.html"',
        'href="versions/v2/drift.html"',
        "20 ms",
        "perdure versions --config",
    ):
        assert part in page, part
    assert page.count("<svg") == 2
    # What was not copied is not linked.
    assert "versions/v1/" not in page


def test_the_figures(written):
    figures = json.loads(written.figures.read_text())
    assert figures["accuracy"] == 0.9
    assert figures["accuracy_first_version"] == 0.4
    assert figures["requests"] == 6
    assert figures["failed_requests"] == 0
    assert figures["unrecorded_answers"] == 0
    assert figures["feedback"] == 5
    assert figures["wrong_labels"] == {"sent": 1, "caught": 1, "innocent": 0}
    assert figures["answer_seconds"]["p50"] == pytest.approx(0.02)
    assert [wave["wave"] for wave in figures["waves"]] == [1, 2]
    assert figures["waves"][0]["first_live"] == 0.0
    assert [turn["wave"] for turn in figures["turns"]] == [0, 1]
    assert figures["turns"][1]["candidates"][0]["outcome"] == "keep"
    assert figures["settings"]["seed"] == 0


def test_the_pictures(written):
    svg, png = written.pictures
    assert svg.name == "accuracy.svg"
    assert "<svg" in svg.read_text()
    assert png.read_bytes().startswith(b"\x89PNG")


def test_pictures_are_the_same_for_the_same_figures(written, scenario, done, tmp_path):
    (tmp_path / "out2").mkdir()
    again = write_results(tmp_path / "out2", scenario, Settings(), done, [])
    assert again.pictures[0].read_bytes() == written.pictures[0].read_bytes()


def test_live_figures_are_drawn_where_there_are_enough(scenario, done, tmp_path, monkeypatch):
    monkeypatch.setattr("perdure_services.demo.scoreboard.WINDOW", 2)
    page = write_results(tmp_path / "out", scenario, Settings(), done, []).report.read_text()
    assert page.count("<svg") == 3
    assert "mean confidence" in page


def test_reports_of_candidates_are_kept(tmp_path, turn_result):
    registry = Registry("memory://")
    card = Card(name="v2", kind="head", encoder=EncoderCard(name="double", fingerprint="0"), labels=("a", "b"))
    registry.write(card, {"report.html": b"judged now", "model.json": b"{}"})
    keep_reports(registry, SeenTurn(1, 4, turn_result(2, "v2")), tmp_path)
    keep_reports(registry, SeenTurn(1, 4, turn_result(3, "v3")), tmp_path)
    assert (tmp_path / "versions" / "v2" / "report.html").read_bytes() == b"judged now"
    assert [path.name for path in (tmp_path / "versions").rglob("*")] == ["v2", "report.html"]
