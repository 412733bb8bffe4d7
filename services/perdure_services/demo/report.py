"""What is left when the demo is over: the page, the figures, the picture, and the reports of all candidates."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from perdure.config import Settings
from perdure.errors import RegistryError
from perdure.judge import plots
from perdure.judge.check import counted
from perdure.judge.report import Cell, Figure, Link, ReportPage, Section, Table, write_report
from perdure.memory import Quarantined
from perdure.registry import Registry
from perdure_services.demo.picture import write_picture
from perdure_services.demo.progress import Progress, SeenTurn
from perdure_services.demo.scenario import Scenario
from perdure_services.demo.scoreboard import WINDOW, Scoreboard
from perdure_services.demo.view import clock, named, percent

GATE = ("learn", "skip", "quarantine", "pseudo", "ignore")
COPIED = ("report.html", "drift.html", "drift.json")
VERSIONS = "versions"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Written:
    """Where the results lie."""

    report: Path
    figures: Path
    pictures: tuple[Path, Path]


def keep_reports(registry: Registry, turn: SeenTurn, folder: Path) -> None:
    """Copies what the judge wrote of a turn's candidates: the registry forgets those that were not promoted."""
    for one in turn.result.candidates:
        place = folder / VERSIONS / one.version
        for name in COPIED:
            try:
                data = registry.read(one.version, name)
            except RegistryError as error:
                _log.info("no %s of %s to show: %s", name, one.version, error)
                continue
            place.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes(data)


def write_results(
    folder: Path, scenario: Scenario, settings: Settings, progress: Progress, quarantined: Sequence[Quarantined]
) -> Written:
    """Writes `report.html`, `demo.json`, `accuracy.svg` and `accuracy.png` into `folder`.

    Raises:
        OSError: `folder` cannot be written.
    """
    board = Scoreboard(scenario, progress)
    pictures = write_picture(folder, scenario, progress)
    figures = folder / "demo.json"
    content = json.dumps(demo_figures(scenario, settings, progress, quarantined), indent=1, ensure_ascii=False)
    figures.write_text(content + "\n", encoding="utf-8")
    page = ReportPage(
        title="Perdure demo",
        headline=headline(progress, board),
        tone="good" if _gained(progress) else "plain",
        sections=(
            _over_time(progress, board),
            _live(board),
            _waves(board),
            _verdicts(progress, folder),
            _gate(progress, board, quarantined),
            _drift(progress, folder),
            _requests(progress, board),
            _further(folder),
        ),
    )
    return Written(write_report(folder, page), figures, pictures)


def headline(progress: Progress, board: Scoreboard) -> str:
    """The result in one sentence."""
    last = progress.scores[-1]
    waves = board.waves()
    new = sum(len(one.new_labels) for one in waves)
    return (
        f"After {len(waves)} wave{'s' * (len(waves) != 1)} with {new} new intents, what serves is right on "
        f"{percent(last.accuracy)} of the exam; version 1, left as it was, on {percent(last.first)}. "
        f"{progress.sent:,} requests were answered, {progress.failed or 'none'} of them failed."
    )


def demo_figures(
    scenario: Scenario, settings: Settings, progress: Progress, quarantined: Sequence[Quarantined]
) -> dict[str, Any]:
    """Everything in figures; accuracies as fractions, times in seconds."""
    board = Scoreboard(scenario, progress)
    last = progress.scores[-1]
    return {
        "accuracy": last.accuracy,
        "accuracy_first_version": last.first,
        "first_version": progress.first,
        "version": last.version,
        "requests": progress.sent,
        "failed_requests": progress.failed,
        "unrecorded_answers": board.unrecorded(),
        "feedback": len(progress.told),
        "wrong_labels": asdict(board.wrong_labels(quarantined)),
        "seconds": progress.seconds,
        "starts": progress.runs,
        "answer_seconds": _answer_seconds(progress),
        "versions_that_answered": board.versions(),
        "waves": [asdict(one) for one in board.waves()],
        "scores": [asdict(score) for score in progress.scores],
        "turns": [{"wave": turn.wave, "sent": turn.sent, **turn.result.to_json()} for turn in progress.turns],
        "settings": settings.model_dump(mode="json"),
    }


def _gained(progress: Progress) -> bool:
    last = progress.scores[-1]
    return last.accuracy > last.first


def _answer_seconds(progress: Progress) -> dict[str, float]:
    taken = [answer.seconds for answer in progress.answers.values()]
    if not taken:
        return {}
    return {name: float(np.percentile(taken, share)) for name, share in (("p50", 50), ("p95", 95), ("p99", 99))}


def _over_time(progress: Progress, board: Scoreboard) -> Section:
    learning, frozen = board.exam()
    marks = [(score.seconds / 60, score.version) for score in progress.scores if score.promotion]
    caption = (
        "The exam: rows that are never sent, of all intents that have come by then. It grows with each wave, so both "
        "lines fall where new intents come. Dashed: a version that passed the judge and was swapped in."
    )
    plot = plots.accuracy_over_time(
        {"Perdure, learning": learning, "version 1, left as it was": frozen},
        _apart(marks),
        xlabel="minutes since the start",
        ylabel="right",
    )
    return Section("Accuracy over time", figures=(Figure(plot, caption),))


def _apart(marks: Sequence[tuple[float, str]], least: float = 0.2) -> list[tuple[float, str]]:
    """Of marks at nearly the same place only the last one has its name, or they could not be read."""
    shown: list[tuple[float, str]] = []
    for at, name in marks:
        if shown and at - shown[-1][0] < least:
            shown.pop()
        shown.append((at, name))
    return shown


def _live(board: Scoreboard) -> Section:
    live, first, confidence = board.moving()
    if not live:
        return Section("Live answers", (f"Fewer than {WINDOW} requests were answered.",))
    series = {"right when answered": live, "mean confidence": confidence}
    if first:
        series["version 1 would be right"] = first
    plot = plots.accuracy_over_time(series, xlabel="requests answered", ylabel=f"of the last {WINDOW} answers")
    caption = (
        "Each answer counts when it is given, before its label is known. Intents of a new wave cannot be right before "
        "the first version that knows them."
    )
    return Section("Live answers", figures=(Figure(plot, caption),))


def _waves(board: Scoreboard) -> Section:
    waves = board.waves()
    names = [f"wave {one.wave}" for one in waves]
    plot = plots.bars_per_group(
        names,
        {
            "exam after the wave": [one.accuracy for one in waves],
            "version 1": [one.first for one in waves],
            "right when answered": [one.live for one in waves],
        },
        ylabel="right",
    )
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            f"{one.wave}: {named(one.new_labels)}",
            f"{one.requests:,}",
            percent(one.live),
            percent(one.first_live),
            percent(one.accuracy),
            percent(one.first),
            one.version or "–",
        )
        for one in waves
    )
    header = ("Wave", "Requests", "Answered right", "Version 1 would", "Exam after it", "Version 1", "Serving")
    return Section("Wave by wave", tables=(Table(header, rows),), figures=(Figure(plot),))


def _verdicts(progress: Progress, folder: Path) -> Section:
    rows: tuple[tuple[Cell, ...], ...] = tuple(
        (
            _linked(folder, one.version, "report.html", one.version),
            "fit" if turn.wave == 0 else str(turn.wave),
            one.outcome,
            one.sentence,
            f"{one.seconds:.1f} s",
        )
        for turn in progress.turns
        for one in turn.result.candidates
    )
    said = "Each turn makes two candidates: the analytic head brought up to date, and LoRA with EWC and replay."
    return Section("What the judge said", (said,), (Table(("Candidate", "Wave", "Verdict", "Why", "Took"), rows),))


def _gate(progress: Progress, board: Scoreboard, quarantined: Sequence[Quarantined]) -> Section:
    rows = tuple(
        (str(turn.result.number), *(f"{turn.result.gate.get(name, 0):,}" for name in GATE)) for turn in progress.turns
    )
    wrong = board.wrong_labels(quarantined)
    said = (
        f"{counted(wrong.sent, 'label')} that customers gave were wrong on purpose; {wrong.caught} of these are in "
        f"quarantine, and beside them {counted(wrong.innocent, 'row')} whose label was right. LoRA learns from none of "
        "what is in quarantine; the analytic head takes every label."
    )
    header = ("Turn", "Learned", "Skipped", "Quarantined", "Pseudo-labelled", "Ignored")
    return Section("What the gate let through", (said,), (Table(header, rows),))


def _drift(progress: Progress, folder: Path) -> Section:
    rows: list[tuple[Cell, ...]] = []
    for turn in progress.turns:
        if turn.result.drift:
            version = next((one.version for one in turn.result.candidates), "")
            link = _linked(folder, version, "drift.html", f"turn {turn.result.number}")
            rows.append((link, "drift" if turn.result.drifted else "none", turn.result.drift))
    if not rows:
        return Section("Drift", ("No turn had rows to compare with earlier ones.",))
    table = Table(("Evidently's report", "Found", "In words"), tuple(rows))
    return Section("Drift", ("Each turn's traffic beside what memory holds of earlier turns.",), (table,))


def _requests(progress: Progress, board: Scoreboard) -> Section:
    seconds = _answer_seconds(progress)
    rows: list[tuple[Cell, ...]] = [
        ("Requests answered", f"{progress.sent:,}"),
        ("Requests that failed", f"{progress.failed:,}"),
        ("Answers not recorded in time", f"{board.unrecorded():,}"),
        ("Labels given", f"{len(progress.told):,}"),
        ("Versions that answered", f"{len(board.versions())}"),
        *((f"Time to an answer, {name}", f"{1000 * value:.0f} ms") for name, value in seconds.items()),
        ("The demo took", f"{clock(progress.seconds)} in {progress.runs} start{'s' * (progress.runs != 1)}"),
    ]
    return Section("Requests", tables=(Table(("Figure", "Value"), tuple(rows)),))


def _further(folder: Path) -> Section:
    return Section(
        "Look further",
        (
            f"What the demo made is a working installation: perdure versions --config {folder}/settings.yaml lists its "
            f"versions, perdure memory --quarantine --config {folder}/settings.yaml what was kept out of learning, and "
            f"perdure serve --config {folder}/settings.yaml serves it.",
        ),
    )


def _linked(folder: Path, version: str, file: str, text: str) -> Cell:
    place = f"{VERSIONS}/{version}/{file}"
    return Link(text, place) if version and (folder / place).is_file() else text
