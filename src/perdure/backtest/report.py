"""The page of a backtest."""

from __future__ import annotations

from pathlib import Path

from perdure.backtest.evaluation import SessionResult
from perdure.backtest.run import Backtest
from perdure.judge import plots
from perdure.judge.report import Figure, ReportPage, Section, Table, write_report


def write_backtest_report(result: Backtest, out: Path) -> Path:
    """Writes `report.html` into `out`: accuracy over sessions, what each part added, and every verdict."""
    metrics = result.metrics()
    sessions = result.sessions
    headline = (
        f"After {len(sessions)} sessions {metrics['acc']:.1%} of all evaluation rows are right; forgetting is "
        f"{metrics['forgetting']:.1%}, with {metrics['memory_samples']:,} samples in memory."
    )
    page = ReportPage(
        title="Backtest",
        headline=headline,
        sections=(_over_time(result), _parts(result), _verdicts(sessions), _kept(result), _figures(metrics)),
    )
    return write_report(out, page)


def _over_time(result: Backtest) -> Section:
    series = {
        "continual": [(float(one.session), one.acc_seen) for one in result.sessions],
        "first version, frozen": [(float(one.session), one.acc_first) for one in result.sessions],
    }
    marks = [(float(one.session), one.version or "") for one in result.sessions if one.turn["candidates"]]
    return Section(
        "Accuracy on what has come so far",
        figures=(
            Figure(
                plots.accuracy_over_time(series, marks, xlabel="session"),
                "Evaluation rows of all sessions up to then.",
            ),
        ),
    )


def _parts(result: Backtest) -> Section:
    rows = tuple(
        (
            str(one.session),
            f"{one.acc_first:.2%}",
            f"{one.acc_head:.2%}",
            "–" if one.acc_lora is None else f"{one.acc_lora:.2%}",
            f"{one.acc_seen:.2%}",
        )
        for one in result.sessions
    )
    return Section(
        "What each part added",
        (
            "The first version never learned again. The head alone is the champion without its adapter. With LoRA is "
            "this session's LoRA candidate, whatever the judge said of it. Served is what the judge let through.",
        ),
        (Table(("Session", "First version", "Head alone", "With LoRA", "Served"), rows),),
    )


def _verdicts(sessions: tuple[SessionResult, ...]) -> Section:
    rows = tuple(
        (str(one.session), str(fate["version"]), str(fate["outcome"]), str(fate["sentence"]), f"{fate['seconds']:.1f}")
        for one in sessions
        for fate in one.turn["candidates"]
    )
    gate = tuple(
        (
            str(one.session),
            *(str(one.turn["gate"].get(name, 0)) for name in _GATE),
            "yes" if one.turn["drifted"] else "no",
        )
        for one in sessions
    )
    return Section(
        "What the judge let through",
        tables=(
            Table(("Session", "Candidate", "Verdict", "Why", "Seconds"), rows),
            Table(("Session", *_GATE, "drift"), gate, "What the gate did with each row, and whether drift was seen"),
        ),
    )


_GATE = ("learn", "skip", "quarantine", "pseudo", "ignore")


def _kept(result: Backtest) -> Section:
    columns = result.evaluated()
    matrix = [[*one.accuracies, *([None] * (len(columns) - len(one.accuracies)))] for one in result.sessions]
    names = [str(one.session) for one in result.sessions]
    figure = Figure(
        plots.heatmap(matrix, names, [names[place] for place in columns]),
        "Row: after that session. Column: that session's evaluation rows.",
    )
    return Section("What was kept", figures=(figure,))


def _figures(metrics: dict[str, object]) -> Section:
    names = ("acc", "aaa", "bwt", "forgetting", "learning_acc", "memory_samples", "memory_bytes", "cpu_seconds", "seed")
    rows = tuple((name, f"{value:.4f}" if isinstance(value := metrics[name], float) else str(value)) for name in names)
    return Section("Figures", tables=(Table(("Figure", "Value"), rows),))
