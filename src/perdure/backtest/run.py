"""The loop over a recorded stream, as fast as it goes.

Rows of a session arrive: the champion predicts them, prediction and label are recorded, one turn runs, and the champion
of then is evaluated on the evaluation rows whose session has come. The loop never sees those. A label may arrive some
sessions after its row; a session that brings labels alone is evaluated on what has come before.

Everything lives in the output folder, so that a backtest that was killed goes on where it was, with the same figures.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from perdure.backtest.arrivals import Recording, SessionArrivals, arrivals_of
from perdure.backtest.evaluation import Evaluation, SessionResult
from perdure.backtest.predictions import PredictionLog
from perdure.config import Settings
from perdure.dataset import DataRow, file_digest, read_rows
from perdure.errors import TooFewLabels, UsageError
from perdure.loop import Loop
from perdure.memory import MemoryCounts, open_memory
from perdure.registry import Registry
from perdure.scores import session_scores
from perdure.stream import open_stream
from perdure.turn import TurnResult

logger = logging.getLogger(__name__)

PROGRESS_FILE = "sessions.jsonl"
METRICS_FILE = "metrics.json"
PLACES = ("stream.url", "registry.url", "memory.path")
"""Settings that say where the state lies: inside the output folder, whatever that is called."""


@dataclass(frozen=True, slots=True)
class Backtest:
    """A finished backtest."""

    sessions: tuple[SessionResult, ...]
    memory: MemoryCounts
    settings: Settings

    def evaluated(self) -> tuple[int, ...]:
        """For each entry of `accuracies`, the place in `sessions` of the session whose rows it is about.

        A session that brings labels alone has none.
        """
        counts = [0, *(len(one.accuracies) for one in self.sessions)]
        return tuple(place for place in range(len(self.sessions)) if counts[place + 1] > counts[place])

    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds."""
        scores = session_scores([one.accuracies for one in self.sessions], self.evaluated())
        last = self.sessions[-1]
        return {
            "acc": last.acc_seen,
            "aaa": float(np.mean([one.acc_seen for one in self.sessions])),
            "bwt": scores.bwt,
            "forgetting": scores.forgetting,
            "learning_acc": scores.learning_acc,
            "parts": {
                "frozen_first_version": last.acc_first,
                "head_only": last.acc_head,
                "with_every_lora_candidate": last.acc_lora,
                "served": last.acc_seen,
            },
            "sessions": [asdict(one) for one in self.sessions],
            "memory_samples": self.memory.samples,
            "memory_bytes": self.memory.memory_bytes,
            "cpu_seconds": sum(one.cpu_seconds for one in self.sessions),
            "wall_seconds": sum(one.wall_seconds for one in self.sessions),
            "seed": self.settings.seed,
            "config": self.settings.model_dump(mode="json"),
        }


def run_backtest(
    stream_file: Path,
    eval_file: Path,
    out: Path,
    settings: Settings,
    *,
    on_session: Callable[[SessionResult], None] | None = None,
    stage: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Backtest:
    """Runs the loop over `stream_file`; see the module's docstring.

    Args:
        stream_file: rows with a session each; sessions come in order.
        eval_file: rows that are evaluated on from their session on.
        out: folder for the figures, the report and the state.
        settings: of everything; paths are put into `out`, and latency is not judged.
        on_session: called after each session.
        stage: as in `Loop`.
        progress: as in `Loop`.

    Raises:
        TooFewLabels: no session brought two labels to tell apart.
        UsageError: a file cannot be used, or `out` holds a backtest of something else.
    """
    settings = _inside(settings, out)
    sessions = arrivals_of(read_rows(stream_file))
    evaluation = read_rows(eval_file)
    _check_evaluated(sessions, evaluation, stream_file, eval_file)
    _same_as_before(out, stream_file, eval_file, settings)
    done = _read_progress(out)
    predictions = PredictionLog(out, done)
    registry, cache = Registry(settings.registry.url), out / "state" / "cache"
    with open_stream(settings.stream) as stream, open_memory(settings) as memory:
        loop = Loop(
            settings,
            stream=stream,
            memory=memory,
            registry=registry,
            cache=cache,
            stage=stage,
            progress=progress,
        )
        examined = Evaluation(evaluation, registry, cache, settings)
        recording = Recording(stream, examined.champion)
        turns = 0
        lacking: TooFewLabels | None = None
        come: set[int] = set()
        for arrivals in sessions:
            session = arrivals.session
            come.add(session)
            if session in done:
                recording.pass_over(arrivals)
                turns += not _was_empty(done[session])
                continue
            wall, cpu = time.perf_counter(), time.process_time()
            # Killed after the turn: it must not be run again with the same rows, which memory would not take anyway.
            if memory.turn().number > turns + 1:
                recording.pass_over(arrivals)
                result = TurnResult.decode(memory.history(1)[-1])
            else:
                recording.record(arrivals)
                try:
                    result = loop.turn()
                except TooFewLabels as error:
                    # A later session may bring another label; these rows wait for it.
                    result, lacking = TurnResult(memory.turn().number, None, None, note=str(error)), error
            turns += not result.empty
            places = [place for place, one in enumerate(evaluation) if one.session in come]
            scored, answers = examined.after(session, places, result)
            scored = replace(scored, cpu_seconds=time.process_time() - cpu, wall_seconds=time.perf_counter() - wall)
            done[session] = scored
            predictions.append(session, places, answers)
            _append_progress(out, scored)
            if on_session:
                on_session(scored)
        if lacking is not None and examined.champion() is None:
            raise lacking
        finished_backtest = Backtest(tuple(done.values()), memory.counts(), settings)
    _write_atomically(out / METRICS_FILE, json.dumps(finished_backtest.metrics(), indent=1).encode())
    return finished_backtest


def _was_empty(result: SessionResult) -> bool:
    return not result.turn["candidates"] and not result.turn["gate"]


def _inside(settings: Settings, out: Path) -> Settings:
    state = out / "state"
    return settings.with_values(
        {
            "stream.url": f"sqlite:{state / 'stream.db'}",
            "registry.url": str(state / "registry"),
            "memory.path": str(state / "memory"),
            # A backtest says what accuracy would have been; what it says must not depend on the machine's mood.
            "judge.judge_latency": False,
        }
    )


def _check_evaluated(
    sessions: Sequence[SessionArrivals], evaluation: Sequence[DataRow], stream_file: Path, eval_file: Path
) -> None:
    """Each session with rows has rows that it is evaluated on. Rows of sessions that never come are left out."""
    without = sorted({one.session for one in sessions if one.rows} - {row.session for row in evaluation})
    if without:
        raise UsageError(
            f"{eval_file} has no rows of session {', '.join(map(str, without[:5]))}{' …' if len(without) > 5 else ''} "
            f"of {stream_file}: every session needs some to be evaluated on"
        )


def _same_as_before(out: Path, stream_file: Path, eval_file: Path, settings: Settings) -> None:
    """Makes the folder, or finds that it holds this very backtest."""
    given = {name: value for name, value in _flat(settings) if name not in PLACES}
    mine: dict[str, Any] = {"stream": file_digest(stream_file), "eval": file_digest(eval_file), "settings": given}
    path = out / "backtest.json"
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _write_atomically(path, json.dumps(mine, indent=1).encode())
            return
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror or error}; give another --out") from error
    theirs = json.loads(path.read_text(encoding="utf-8"))
    differing = [f"another {name} file" for name in ("stream", "eval") if mine[name] != theirs.get(name)]
    differing += [
        f"{name} {theirs['settings'].get(name)!r} instead of {value!r}"
        for name, value in given.items()
        if theirs["settings"].get(name) != value
    ]
    if differing:
        raise UsageError(
            f"{out} holds a backtest with {', '.join(differing)}: give another --out, or delete that folder"
        )


def _flat(settings: Settings) -> Iterator[tuple[str, Any]]:
    for section, values in settings.model_dump(mode="json").items():
        if not isinstance(values, dict):
            yield section, values
            continue
        for name, value in values.items():
            yield f"{section}.{name}", value


def _read_progress(out: Path) -> dict[int, SessionResult]:
    path = out / PROGRESS_FILE
    done: dict[int, SessionResult] = {}
    if not path.exists():
        return done
    for line in path.read_bytes().split(b"\n"):
        try:
            fields = json.loads(line)
        except ValueError:
            # The last line may be half-written by a process that was killed; its session is evaluated again.
            continue
        fields["accuracies"] = tuple(fields["accuracies"])
        done[int(fields["session"])] = SessionResult(**fields)
    _write_atomically(path, b"".join(json.dumps(asdict(one)).encode() + b"\n" for one in done.values()))
    return done


def _append_progress(out: Path, result: SessionResult) -> None:
    with (out / PROGRESS_FILE).open("ab") as file:
        file.write(json.dumps(asdict(result)).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _write_atomically(path: Path, data: bytes) -> None:
    part = path.with_suffix(path.suffix + ".part")
    part.write_bytes(data)
    part.replace(path)
