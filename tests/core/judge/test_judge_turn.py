from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from perdure.config import JudgeSettings
from perdure.judge.artifact import Artifact
from perdure.judge.drift import ColumnDrift, DriftSummary
from perdure.judge.evidence import Evidence
from perdure.judge.report import Link, Mark, ReportPage, Section, render
from perdure.judge.turn import LABELS_SHOWN, QUARANTINED_SHOWN, Judged, turn_page
from perdure.judge.verdict import judge
from perdure.memory import Quarantined

Make = Callable[..., Evidence]
DRIFT = DriftSummary(
    True, (ColumnDrift("confidence", 0.31, 0.2, True),), 500, 400, "Drift in 1 of 1 columns: confidence.", True, 0.041
)


def section(page: ReportPage, title: str) -> Section:
    return next(part for part in page.sections if title in part.title)


@pytest.fixture
def head(evidence: Make, sound: Artifact) -> Judged:
    rows = evidence(
        [("a", "a", "a", 150), ("a", "a", "b", 1), ("b", "a", "b", 20), ("b", "b", "b", 130), ("c", "a", "c", 40)],
        new=("a", "b", "c"),
    )
    return Judged("head", "v7-head", judge(rows, kind="head", settings=JudgeSettings(), artifact=sound), rows)


@pytest.fixture
def lora(evidence: Make, sound: Artifact) -> Judged:
    rows = evidence([("a", "a", "a", 150), ("d", "a", "a", 3)])
    return Judged("lora", "v7-lora", judge(rows, kind="lora", settings=JudgeSettings(), artifact=sound), rows)


def test_promoted_verdict_is_the_headline(head: Judged, lora: Judged) -> None:
    page = turn_page(number=7, champion="v6", judged=[lora, head], promoted="v7-head", drift=DRIFT)
    assert page.headline == head.verdict.sentence
    assert page.tone == "good"
    assert page.title == "Turn 7 on champion v6"
    assert section(page, "v7-head").title == "Analytic head: v7-head serves now"
    assert section(page, "v7-lora").title == "LoRA with EWC and replay: v7-lora does not serve"
    assert section(page, "v7-lora").paragraphs == (lora.verdict.sentence,)
    assert section(page, "v7-head").paragraphs == ()


def test_notes_on_how_it_was_made_are_told(lora: Judged) -> None:
    noted = replace(lora, notes=("The champion's anchor was not used: rank was 8 and is 4.",))
    page = turn_page(number=7, champion="v6", judged=[noted], promoted=None)
    assert section(page, "v7-lora").paragraphs == noted.notes


def test_nothing_promoted(lora: Judged) -> None:
    page = turn_page(number=7, champion="v6", judged=[lora], promoted=None)
    assert page.headline == lora.verdict.sentence
    assert page.tone == "open"


def test_no_candidate() -> None:
    page = turn_page(number=1, champion=None, judged=(), promoted=None)
    assert page.headline == "Keep: there was no candidate to judge."
    assert page.sections == ()
    assert page.title == "Turn 1"


def test_every_check_has_a_row(head: Judged) -> None:
    page = turn_page(number=7, champion="v6", judged=[head], promoted="v7-head")
    rows = section(page, "v7-head").tables[0].rows
    assert [row[0] for row in rows] == [check.name.replace("_", " ") for check in head.verdict.checks]
    assert [row[1] for row in rows] == [Mark(check.passed) for check in head.verdict.checks]


def test_labels_that_changed(head: Judged, lora: Judged) -> None:
    page = turn_page(number=7, champion="v6", judged=[head, lora], promoted=None)
    tables = {table.caption: table.rows for table in section(page, "Analytic head: labels").tables}
    assert tables == {
        "Lost most": (("a", "100.0 %", "99.3 %", "-0.7 points", "151"),),
        "Gained most": (("b", "86.7 %", "100.0 %", "+13.3 points", "150"),),
        "New, least recall first": (("c", "–", "100.0 %", "–", "40"),),
    }
    assert section(page, "LoRA with EWC and replay: labels").paragraphs == (
        "No label changed its recall.",
        "3 rows have labels that are no class yet, and were not compared.",
    )


def test_many_labels_are_cut(evidence: Make, sound: Artifact) -> None:
    labels = tuple(f"label {number:02}" for number in range(30))
    rows = evidence(
        [(label, label, labels[0], number + 1) for number, label in enumerate(labels)], old=labels, new=labels
    )
    verdict = judge(rows, kind="head", settings=JudgeSettings(), artifact=sound)
    page = turn_page(number=7, champion="v6", judged=[Judged("head", "v7", verdict, rows)], promoted=None)
    (table,) = section(page, "labels").tables
    assert len(table.rows) == LABELS_SHOWN


def test_first_version(evidence: Make, sound: Artifact) -> None:
    rows = evidence([("a", "", "a", 30), ("b", "", "b", 30)], old=None)
    verdict = judge(rows, kind="first", settings=JudgeSettings(), artifact=sound)
    page = turn_page(number=1, champion=None, judged=[Judged("first", "v1", verdict, rows)], promoted="v1")
    assert "first version" in section(page, "labels").figures[0].svg
    render(page)


def test_first_version_without_rows(evidence: Make, sound: Artifact) -> None:
    rows = evidence([], old=None)
    verdict = judge(rows, kind="first", settings=JudgeSettings(), artifact=sound)
    page = turn_page(number=1, champion=None, judged=[Judged("first", "v1", verdict, rows)], promoted="v1")
    assert [part.title for part in page.sections] == ["First version: v1 serves now"]


def test_drift_is_told_and_linked(lora: Judged) -> None:
    page = turn_page(number=7, champion="v6", judged=[lora], promoted=None, drift=DRIFT)
    part = section(page, "Drift")
    assert part.paragraphs[0] == DRIFT.sentence
    assert part.paragraphs[-1] == Link("Evidently's drift report", "drift.html")
    assert part.tables[0].rows == (("confidence", Mark(False), "0.310", "0.200"),)
    few = replace(DRIFT, columns=(), enough=False, centre_distance=None, sentence="Too few rows.")
    part = section(turn_page(number=7, champion="v6", judged=[lora], promoted=None, drift=few), "Drift")
    assert part.tables == ()
    assert part.paragraphs[0] == "Too few rows."


def test_numbers(lora: Judged) -> None:
    counts: dict[str, dict[str, str | int | float]] = {
        "Gate": {"learned": 1214, "share": 0.5, "note": "all"},
        "Empty": {},
    }
    page = turn_page(number=7, champion="v6", judged=[lora], promoted=None, counts=counts)
    (table,) = section(page, "Numbers").tables
    assert table.rows == (("learned", "1,214"), ("share", "0.50"), ("note", "all"))


def test_quarantined_are_shown_latest_first_and_escaped(lora: Judged) -> None:
    rows = [
        Quarantined(f"id{number}", "<b>why</b>", f"<script>{number}</script>" + "x" * 500, None, float(number))
        for number in range(30)
    ]
    page = turn_page(number=7, champion="v6", judged=[lora], promoted=None, quarantined=rows)
    part = section(page, "Quarantine")
    assert part.paragraphs == ("30 records are kept out of learning; the latest 20 of them:",)
    assert len(part.tables[0].rows) == QUARANTINED_SHOWN
    first = part.tables[0].rows[0][0]
    assert isinstance(first, str)
    assert first.startswith("<script>29</script>")
    assert len(first) == 300
    text = render(page)
    assert "<script>" not in text
    assert "&lt;b&gt;why&lt;/b&gt;" in text
