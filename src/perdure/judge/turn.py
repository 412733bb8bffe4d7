"""The page of one turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from perdure.judge import plots
from perdure.judge.calibration import Bin, bins
from perdure.judge.comparison import Comparison, LabelRecall, compare, confidences
from perdure.judge.drift import DriftSummary
from perdure.judge.evidence import Evidence
from perdure.judge.report import Cell, Figure, Link, Mark, ReportPage, Section, Table, Tone
from perdure.judge.verdict import Kind, Outcome, Verdict
from perdure.memory import Quarantined

LABELS_SHOWN = 8
"""Labels that gained most, and as many that lost most."""

QUARANTINED_SHOWN = 20
LONGEST_TEXT = 300

_TONES: Mapping[Outcome, Tone] = {"promote": "good", "keep": "bad", "inconclusive": "open"}
_KINDS: Mapping[Kind, str] = {"first": "First version", "head": "Analytic head", "lora": "LoRA with EWC and replay"}


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate of a turn."""

    kind: Kind
    version: str
    verdict: Verdict
    evidence: Evidence
    notes: tuple[str, ...] = ()
    """What a person should know of how it was made."""


def turn_page(
    *,
    number: int,
    champion: str | None,
    judged: Sequence[Judged],
    promoted: str | None,
    drift: DriftSummary | None = None,
    counts: Mapping[str, Mapping[str, str | int | float]] | None = None,
    quarantined: Sequence[Quarantined] = (),
    drift_href: str = "drift.html",
) -> ReportPage:
    """What happened in turn `number`.

    Args:
        number: of the turn.
        champion: version that served before; None for the first.
        judged: candidates with their verdicts; may be empty.
        promoted: version of the candidate that serves now; None where the champion stays.
        drift: what the drift report in the same folder says.
        counts: titled groups of named numbers, such as what the gate did, what memory holds, and timings in seconds.
        quarantined: records kept out of learning.
        drift_href: where the drift report lies, relative to the page.
    """
    leading = next((one for one in judged if one.version == promoted), judged[0] if judged else None)
    return ReportPage(
        title=f"Turn {number}" + (f" on champion {champion}" if champion else ""),
        headline=leading.verdict.sentence if leading else "Keep: there was no candidate to judge.",
        sections=(
            *(section for one in judged for section in _candidate(one, promoted, one is leading)),
            *([_drift(drift, drift_href)] if drift else []),
            *([_counts(counts)] if counts else []),
            *([_quarantine(quarantined)] if quarantined else []),
        ),
        tone=_TONES[leading.verdict.outcome] if leading else "plain",
    )


def _candidate(one: Judged, promoted: str | None, leading: bool) -> tuple[Section, ...]:
    name = _KINDS[one.kind]
    fate = "serves now" if one.version == promoted else "does not serve"
    checks = Table(
        header=("Check", "Answer", "Found", "Limit", "Rows", "In words"),
        rows=tuple(
            (
                check.name.replace("_", " "),
                Mark(check.passed),
                _number(check.value),
                _number(check.limit),
                f"{check.rows:,}" if check.rows else "–",
                check.sentence,
            )
            for check in one.verdict.checks
        ),
    )
    # The leading verdict stands at the top of the page already.
    said = (*(() if leading else (one.verdict.sentence,)), *one.notes)
    sections = [Section(f"{name}: {one.version} {fate}", said, (checks,))]
    comparison = compare(one.evidence)
    if len(one.evidence):
        sections.append(_labels(name, comparison))
    return tuple(sections)


def _labels(name: str, comparison: Comparison) -> Section:
    labels = comparison.labels()
    known = sorted((found for found in labels if found.known), key=_change)
    groups = {
        "Lost most": [found for found in known if _change(found) < 0][:LABELS_SHOWN],
        "Gained most": [found for found in reversed(known) if _change(found) > 0][:LABELS_SHOWN],
        "New, least recall first": sorted(
            (found for found in labels if not found.known), key=lambda found: found.paired.candidate
        )[:LABELS_SHOWN],
    }
    tables = tuple(
        Table(
            header=("Label", "Champion", "Candidate", "Change", "Rows"),
            rows=tuple(_label_row(found) for found in chosen),
            caption=title,
        )
        for title, chosen in groups.items()
        if chosen
    )
    unknown = len(comparison.evidence) - int((comparison.known | comparison.new).sum())
    paragraphs = [] if tables else ["No label changed its recall."]
    if unknown:
        paragraphs.append(f"{unknown:,} rows have labels that are no class yet, and were not compared.")
    figures = (
        Figure(
            plots.reliability(_curves(compare(comparison.evidence.finished()))),
            "Calibration on the paired rows: above the diagonal a model is more often right than it says.",
        ),
    )
    return Section(f"{name}: labels and confidence", tuple(paragraphs), tables, figures)


def _curves(comparison: Comparison) -> dict[str, tuple[Bin, ...]]:
    evidence = comparison.evidence
    if evidence.champion is None:
        rows = comparison.new
        return {"first version": bins(confidences(evidence.candidate)[rows], comparison.candidate_right[rows])}
    rows = comparison.known
    return {
        "champion": bins(confidences(evidence.champion)[rows], comparison.champion_right[rows]),
        "candidate": bins(confidences(evidence.candidate)[rows], comparison.candidate_right[rows]),
    }


def _change(found: LabelRecall) -> float:
    return found.paired.candidate - found.paired.champion


def _label_row(found: LabelRecall) -> tuple[Cell, ...]:
    return (
        found.label,
        f"{100 * found.paired.champion:.1f} %" if found.known else "–",
        f"{100 * found.paired.candidate:.1f} %",
        f"{100 * _change(found):+.1f} points" if found.known else "–",
        f"{found.paired.rows:,}",
    )


def _drift(drift: DriftSummary, href: str) -> Section:
    paragraphs: list[str | Link] = [drift.sentence]
    if drift.centre_distance is not None:
        paragraphs.append(
            f"Cosine distance between the mean embeddings of reference and current: {drift.centre_distance:.3f}."
        )
    paragraphs.append(Link("Evidently's drift report", href))
    table = Table(
        header=("Column", "Same as before", "Distance", "Threshold"),
        rows=tuple(
            (column.name, Mark(not column.drifted), f"{column.score:.3f}", f"{column.threshold:.3f}")
            for column in drift.columns
        ),
        caption="Jensen-Shannon distance; the threshold is the setting, or what chance reaches with so few rows.",
    )
    return Section("Drift", tuple(paragraphs), (table,) if drift.columns else ())


def _counts(counts: Mapping[str, Mapping[str, str | int | float]]) -> Section:
    tables = tuple(
        Table((title, ""), tuple((name, _count(value)) for name, value in group.items()))
        for title, group in counts.items()
        if group
    )
    return Section("Numbers", (), tables)


def _quarantine(quarantined: Sequence[Quarantined]) -> Section:
    shown = sorted(quarantined, key=lambda one: (-one.time, one.id))[:QUARANTINED_SHOWN]
    table = Table(
        header=("Text", "Label", "Reason"),
        rows=tuple((_cut(one.text), "–" if one.label is None else one.label, one.reason) for one in shown),
    )
    said = f"{len(quarantined):,} records are kept out of learning"
    said += f"; the latest {len(shown)} of them:" if len(shown) < len(quarantined) else ":"
    return Section("Quarantine", (said,), (table,))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 2 and value == round(value) else f"{value:.3f}"


def _count(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
