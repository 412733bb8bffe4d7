"""`perdure backtest`: what the loop would have made of a recorded stream."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from perdure.commands.options import AsJson, ConfigFile, Overrides, Seed, print_json, stdout
from perdure.config import load_settings

if TYPE_CHECKING:
    from perdure.backtest import SessionResult


def backtest(
    stream: Annotated[
        Path,
        typer.Option("--stream", metavar="FILE", help="Rows that arrive: text, label, session (JSON Lines or CSV)."),
    ],
    evaluation: Annotated[
        Path, typer.Option("--eval", metavar="FILE", help="Rows that the loop never sees, each with its session.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where figures, report and state go.")],
    memory_per_class: Annotated[
        int | None,
        typer.Option("--memory-per-class", min=1, help="Most samples kept of a label, held-out ones included."),
    ] = None,
    seed: Seed = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Run the loop over a recorded stream, as fast as it goes, and say how well it learned and kept.

    Writes metrics.json and report.html. One that was killed goes on where it was; the same seed gives the same figures.
    """
    from perdure.backtest import METRICS_FILE, run_backtest, write_backtest_report
    from perdure.commands.display import turn_display

    extra = list(overrides or ())
    if memory_per_class is not None:
        extra.append(f"memory.per_class={memory_per_class}")
    if seed is not None:
        extra.append(f"seed={seed}")
    settings = load_settings(config, extra)
    with turn_display() as display:

        def told(one: SessionResult) -> None:
            if not as_json:
                display.say(
                    f"session {one.session}: accuracy {one.acc_seen:.4f} (head alone {one.acc_head:.4f}), "
                    f"{one.verdict}; learned {one.learned}, skipped {one.skipped}, quarantined {one.quarantined}; "
                    f"{one.wall_seconds:.0f} s"
                )

        result = run_backtest(
            stream, evaluation, out, settings, on_session=told, stage=display.stage, progress=display.steps
        )
    report = write_backtest_report(result, out)
    metrics = result.metrics()
    if as_json:
        print_json(metrics)
        return
    stdout.print(
        f"acc {metrics['acc']:.4f}  aaa {metrics['aaa']:.4f}  bwt {metrics['bwt']:+.4f}  "
        f"forgetting {metrics['forgetting']:.4f}  memory {metrics['memory_samples']:,} samples  "
        f"cpu {metrics['cpu_seconds']:.0f} s"
    )
    stdout.print(f"Figures: {out / METRICS_FILE}. Report: {report}.")
