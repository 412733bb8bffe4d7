"""The loop over a recorded stream: figures that can be checked by hand, the same again, and after a kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.backtest import run_backtest, write_backtest_report
from perdure.backtest.evaluation import Evaluation
from perdure.errors import TooFewLabels, UsageError
from perdure.records import Feedback, Interaction
from perdure.stream import SqliteStream

TIMINGS = {"cpu_seconds", "learn_cpu_seconds", "wall_seconds", "seconds"}
SESSIONS = (("refund", "parcel"), ("login",), ("card", "refund"))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def recorded(tmp_path, sentences):
    """Stream and evaluation files of three sessions; the last one is of rows seen before, for the most part."""
    rows = [
        {"text": text, "label": label, "session": session}
        for session, labels in enumerate(SESSIONS)
        for label in labels
        for text in sentences(label, 20, seed=0 if label == "refund" else session)
    ]
    rows[3]["labelled"] = False
    known: dict[str, int] = {}
    for session, labels in enumerate(SESSIONS):
        for label in labels:
            known.setdefault(label, session)
    evaluation = [
        {"text": text, "label": label, "session": session}
        for label, session in known.items()
        for text in sentences(label, 10, seed=7)
    ]
    return write(tmp_path / "stream.jsonl", rows), write(tmp_path / "eval.jsonl", evaluation)


@pytest.fixture
def settings(desk):
    return desk.settings.with_values(
        {"judge.drift_min_rows": 10_000, "judge.judge_latency": True, "memory.per_class": 10}
    )


def untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: untimed(part) for name, part in value.items() if name not in TIMINGS and name != "config"}
    if isinstance(value, list):
        return [untimed(part) for part in value]
    return value


def figures(out: Path) -> Any:
    return untimed(json.loads((out / "metrics.json").read_text(encoding="utf-8")))


def predictions(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def right(out: Path, evaluation: Path) -> dict[int, list[bool]]:
    """For each session, whether the answer to each evaluation row that had come was right."""
    truth = [json.loads(line)["label"] for line in evaluation.read_text(encoding="utf-8").splitlines()]
    found: dict[int, list[bool]] = {}
    for one in predictions(out):
        found.setdefault(one["session"], []).append(one["answer"] == truth[one["row"]])
    return found


def test_the_figures_keep_the_contract(recorded, settings, tmp_path):
    stream, evaluation = recorded
    told = []
    result = run_backtest(stream, evaluation, tmp_path / "out", settings, on_session=told.append)
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics == json.loads(json.dumps(result.metrics()))
    sessions = metrics["sessions"]
    assert [one["session"] for one in sessions] == [0, 1, 2] == [one.session for one in told]
    rows = [one["accuracies"] for one in sessions]
    assert [len(row) for row in rows] == [1, 2, 3]
    # By hand: each session brings this many evaluation rows.
    size = [20, 10, 10]
    for one, row in zip(sessions, rows, strict=True):
        weights = size[: len(row)]
        assert one["acc_seen"] == pytest.approx(sum(a * n for a, n in zip(row, weights, strict=True)) / sum(weights))
    assert metrics["acc"] == sessions[-1]["acc_seen"]
    assert metrics["aaa"] == pytest.approx(sum(one["acc_seen"] for one in sessions) / 3)
    assert metrics["learning_acc"] == pytest.approx((rows[0][0] + rows[1][1] + rows[2][2]) / 3)
    assert metrics["bwt"] == pytest.approx((rows[2][0] - rows[0][0] + rows[2][1] - rows[1][1]) / 2)
    assert metrics["forgetting"] == pytest.approx(
        (max(rows[0][0], rows[1][0]) - rows[2][0] + rows[1][1] - rows[2][1]) / 2
    )
    assert metrics["acc"] > 0.8
    # The first version knows two of four labels, and never learned the others.
    assert metrics["parts"]["frozen_first_version"] <= 0.5
    assert metrics["seed"] == 3
    assert metrics["config"]["memory"]["per_class"] == 10
    assert metrics["config"]["judge"]["judge_latency"] is False
    assert metrics["memory_samples"] == 40
    assert metrics["memory_bytes"] > 0
    assert metrics["cpu_seconds"] == pytest.approx(sum(one["cpu_seconds"] for one in sessions))
    for one in sessions:
        assert one["learn_cpu_seconds"] == one["turn"]["cpu_seconds"]
        assert 0 < one["learn_cpu_seconds"] < one["cpu_seconds"]
    assert [one["row"] for one in predictions(tmp_path / "out")] == [*range(20), *range(30), *range(40)]
    answered = right(tmp_path / "out", evaluation)
    assert [sum(flags) / len(flags) for flags in answered.values()] == [one["acc_seen"] for one in sessions]
    assert all(0 < one["confidence"] <= 1 for one in predictions(tmp_path / "out"))
    assert sessions[0]["version"] == "v000001-head"
    assert "first: promote" in sessions[0]["verdict"]
    assert sessions[0]["learned"] == 39, "the row whose label must not be seen was learned from"
    assert sessions[0]["learned"] + sessions[0]["skipped"] + sessions[0]["quarantined"] == 39
    page = write_backtest_report(result, tmp_path / "out").read_text(encoding="utf-8")
    for part in ("What each part added", "What the judge let through", "v000001-head", "After 3 sessions"):
        assert part in page


def test_the_loop_never_sees_what_it_is_evaluated_on(recorded, settings, tmp_path, monkeypatch):
    stream, evaluation = recorded
    secret = {json.loads(line)["text"] for line in evaluation.read_text(encoding="utf-8").splitlines()}
    run_backtest(stream, evaluation, tmp_path / "out", settings)
    for file in (tmp_path / "out" / "state").rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert not any(text.encode() in data for text in secret), file


def test_rows_of_a_session_are_predicted_by_the_champion_of_before(recorded, settings, tmp_path):
    stream, evaluation = recorded
    run_backtest(stream, evaluation, tmp_path / "out", settings)
    with SqliteStream(tmp_path / "out" / "state" / "stream.db") as written:
        records = [entry.record() for entry in written.read({}, 10_000).entries]
    predictions = [record for record in records if isinstance(record, Interaction)]
    assert [one.version for one in predictions[:40]] == [None] * 40
    assert {one.version for one in predictions[40:60]} == {"v000001-head"}
    assert {one.label for one in predictions[40:60]} <= {"refund", "parcel"}
    assert len({one.id for one in predictions}) == len(predictions) == 100
    labelled = {record.interaction for record in records if isinstance(record, Feedback)}
    assert {one.id for one in predictions} - labelled == {predictions[3].id}


def test_the_same_seed_gives_the_same_figures(recorded, settings, tmp_path):
    stream, evaluation = recorded
    for name in ("one", "two"):
        run_backtest(stream, evaluation, tmp_path / name, settings)
    assert figures(tmp_path / "one") == figures(tmp_path / "two")
    run_backtest(stream, evaluation, tmp_path / "three", settings.with_values({"seed": 4}))
    assert figures(tmp_path / "three") != figures(tmp_path / "one")


def test_a_finished_backtest_runs_no_turn_again(recorded, settings, tmp_path):
    stream, evaluation = recorded
    run_backtest(stream, evaluation, tmp_path / "out", settings)
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    stages: list[str] = []
    run_backtest(stream, evaluation, tmp_path / "out", settings, stage=stages.append)
    assert stages == []
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before


def test_a_killed_backtest_ends_with_the_same_figures(recorded, settings, tmp_path):
    """Killed by the system, in the second session."""
    stream, evaluation = recorded
    (tmp_path / "settings.json").write_text(settings.model_dump_json(), encoding="utf-8")
    script = Path(__file__).with_name("killed_backtest.py")
    files = (stream, evaluation, tmp_path / "killed", tmp_path / "settings.json")
    killed = subprocess.run(
        [sys.executable, str(script), *map(str, files), "16"],
        capture_output=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert not (tmp_path / "killed" / "metrics.json").exists()
    assert len((tmp_path / "killed" / "sessions.jsonl").read_bytes().splitlines()) == 1
    run_backtest(stream, evaluation, tmp_path / "undisturbed", settings)
    run_backtest(stream, evaluation, tmp_path / "killed", settings)
    assert figures(tmp_path / "killed") == figures(tmp_path / "undisturbed")
    assert predictions(tmp_path / "killed") == predictions(tmp_path / "undisturbed")


class Stopped(Exception):
    pass


def recorded_ids(out: Path) -> list[str]:
    with SqliteStream(out / "state" / "stream.db") as stream:
        records = [entry.record() for entry in stream.read({}, 10_000).entries]
    return [record.id for record in records if isinstance(record, Interaction)]


def test_a_backtest_stopped_anywhere_ends_with_the_same_figures(recorded, settings, tmp_path):
    """Stopped at stage after stage, until it gets through. Half of the labels come with their rows, half later."""
    stream, evaluation = recorded
    delay_labels(stream, every=2)
    run_backtest(stream, evaluation, tmp_path / "undisturbed", settings)
    sessions: list[int] = []
    seen: set[tuple[int, str]] = set()

    def stop_at_what_is_new(name: str) -> None:
        place = (len(sessions), name)
        if place not in seen:
            seen.add(place)
            raise Stopped(name)

    stopped = 0
    while True:
        try:
            run_backtest(
                stream,
                evaluation,
                tmp_path / "stopped",
                settings,
                stage=stop_at_what_is_new,
                on_session=lambda one: sessions.append(one.session),
            )
            break
        except Stopped:
            stopped += 1
    assert stopped > 20
    assert sessions == [0, 1, 2, 3]
    assert recorded_ids(tmp_path / "stopped") == recorded_ids(tmp_path / "undisturbed"), "rows were recorded twice"
    assert figures(tmp_path / "stopped") == figures(tmp_path / "undisturbed")
    assert predictions(tmp_path / "stopped") == predictions(tmp_path / "undisturbed")


def delay_labels(stream: Path, every: int = 1) -> None:
    """The label of every so many rows arrives one session after its row."""
    rows = [json.loads(line) for line in stream.read_text(encoding="utf-8").splitlines()]
    for row in rows[::every]:
        if row.get("labelled", True):
            row["label_session"] = row["session"] + 1
    write(stream, rows)


def test_labels_that_arrive_a_session_late_are_learned_a_session_late(recorded, settings, tmp_path):
    stream, evaluation = recorded
    in_time = run_backtest(stream, evaluation, tmp_path / "in time", settings)
    delay_labels(stream)
    late = run_backtest(stream, evaluation, tmp_path / "late", settings)
    assert [one.session for one in late.sessions] == [0, 1, 2, 3]
    assert [len(one.accuracies) for one in late.sessions] == [1, 2, 3, 3]
    assert [one.version for one in late.sessions[:2]] == [None, "v000001-head"]
    assert late.sessions[0].acc_seen == 0.0
    assert late.sessions[1].accuracies[1] == 0.0, "nothing was known of the second session's labels"
    assert late.sessions[2].accuracies[1] > 0.5
    assert late.sessions[2].accuracies[2] < 0.5 < late.sessions[3].accuracies[2]
    # In the end it has been told the same.
    assert late.memory.samples == in_time.memory.samples
    assert late.sessions[3].acc_head == pytest.approx(in_time.sessions[2].acc_head, abs=0.051)
    metrics = late.metrics()
    rows = [one.accuracies for one in late.sessions]
    assert metrics["learning_acc"] == pytest.approx((rows[0][0] + rows[1][1] + rows[2][2]) / 3)
    assert metrics["bwt"] == pytest.approx(sum(rows[3][j] - rows[j][j] for j in range(3)) / 3)
    page = write_backtest_report(late, tmp_path / "late").read_text(encoding="utf-8")
    assert "After 4 sessions" in page
    with SqliteStream(tmp_path / "late" / "state" / "stream.db") as written:
        records = [entry.record() for entry in written.read({}, 10_000).entries]
    assert sum(isinstance(record, Feedback) for record in records) == 99
    assert {type(record) for record in records[-40:]} == {Feedback}
    assert isinstance(records[-41], Interaction)


def test_a_backtest_stopped_between_turn_and_evaluation_runs_no_turn_twice(recorded, settings, tmp_path, monkeypatch):
    """The third session says nothing new, so that no turn is used up for it."""
    stream, evaluation = recorded
    rows = [json.loads(line) for line in stream.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        row["labelled"] = row["session"] != 1
    write(stream, rows)
    run_backtest(stream, evaluation, tmp_path / "undisturbed", settings)
    assert figures(tmp_path / "undisturbed")["sessions"][1]["verdict"] == "nothing new"
    real = Evaluation.after
    for session in (0, 1, 2):

        def fail(self, one, *args, session=session):
            if one == session:
                raise Stopped
            return real(self, one, *args)

        monkeypatch.setattr(Evaluation, "after", fail)
        with pytest.raises(Stopped):
            run_backtest(stream, evaluation, tmp_path / "stopped", settings)
    monkeypatch.setattr(Evaluation, "after", real)
    run_backtest(stream, evaluation, tmp_path / "stopped", settings)
    assert figures(tmp_path / "stopped") == figures(tmp_path / "undisturbed")


def test_features_that_are_kept_between_sessions_change_nothing(recorded, settings, tmp_path, monkeypatch):
    run_backtest(*recorded, tmp_path / "kept", settings)
    monkeypatch.setattr("perdure.backtest.evaluation.KEPT_ROWS", 0)
    run_backtest(*recorded, tmp_path / "anew", settings)
    assert figures(tmp_path / "anew") == figures(tmp_path / "kept")


def test_a_half_written_line_of_progress_is_evaluated_again(recorded, settings, tmp_path):
    stream, evaluation = recorded
    out = tmp_path / "out"
    run_backtest(stream, evaluation, out, settings)
    before = figures(out)
    progress = out / "sessions.jsonl"
    progress.write_bytes(progress.read_bytes()[:-20])
    run_backtest(stream, evaluation, out, settings)
    assert figures(out) == before
    assert len(progress.read_bytes().splitlines()) == 3


def test_a_folder_may_be_moved_but_not_used_for_something_else(recorded, settings, tmp_path):
    stream, evaluation = recorded
    out = tmp_path / "out"
    run_backtest(stream, evaluation, out, settings)
    out.rename(tmp_path / "moved")
    run_backtest(stream, evaluation, tmp_path / "moved", settings)
    with pytest.raises(UsageError, match=r"with seed 3 instead of 4: give another --out"):
        run_backtest(stream, evaluation, tmp_path / "moved", settings.with_values({"seed": 4}))
    with pytest.raises(UsageError, match=r"lora\.rank 2 instead of 4"):
        run_backtest(stream, evaluation, tmp_path / "moved", settings.with_values({"lora.rank": 4}))
    other = write(tmp_path / "other.jsonl", [{"text": "x", "label": "y", "session": s} for s in range(3)])
    with pytest.raises(UsageError, match="another eval file"):
        run_backtest(stream, other, tmp_path / "moved", settings)


def test_a_folder_that_cannot_be_made_is_told(recorded, settings, tmp_path):
    stream, evaluation = recorded
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UsageError, match="give another --out"):
        run_backtest(stream, evaluation, tmp_path / "file", settings)


def test_every_session_needs_rows_to_be_evaluated_on(recorded, settings, tmp_path):
    stream, evaluation = recorded
    rows = [json.loads(line) for line in evaluation.read_text(encoding="utf-8").splitlines()]
    write(evaluation, [row for row in rows if row["session"] != 1])
    with pytest.raises(UsageError, match="has no rows of session 1 of"):
        run_backtest(stream, evaluation, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_rows_of_sessions_that_never_come_are_left_out(recorded, settings, tmp_path):
    stream, evaluation = recorded
    rows = [json.loads(line) for line in stream.read_text(encoding="utf-8").splitlines()]
    write(stream, [{**row, "session": 2 * row["session"]} for row in rows if row["session"] < 2])
    rows = [json.loads(line) for line in evaluation.read_text(encoding="utf-8").splitlines()]
    write(evaluation, [{**row, "session": {0: 0, 1: 2, 2: 1}[row["session"]]} for row in rows])
    result = run_backtest(stream, evaluation, tmp_path / "out", settings)
    assert [len(one.accuracies) for one in result.sessions] == [1, 2]


def test_a_session_with_nothing_to_tell_apart_waits_for_the_next(settings, tmp_path, sentences):
    """The first session brings one label, the second a row of another, the third the rest of it."""
    brought = (("refund", 20), ("login", 1), ("login", 19))
    rows, start = [], {"refund": 0, "login": 0}
    for session, (label, count) in enumerate(brought):
        texts = sentences(label, 20, seed=4)[start[label] :][:count]
        start[label] += count
        rows += [{"text": text, "label": label, "session": session} for text in texts]
    evaluation = [
        {"text": text, "label": label, "session": session}
        for label, session in (("refund", 0), ("login", 1), ("login", 2))
        for text in sentences(label, 10, seed=7 + session)
    ]
    stream, asked = write(tmp_path / "s.jsonl", rows), write(tmp_path / "e.jsonl", evaluation)
    result = run_backtest(stream, asked, tmp_path / "out", settings)
    assert [one.version for one in result.sessions] == [None, None, "v000001-head"]
    assert [one.acc_seen for one in result.sessions][:2] == [0.0, 0.0]
    assert "at least two labels" in result.sessions[0].verdict
    assert result.sessions[2].acc_seen > 0.8
    assert result.sessions[2].learned == 40


def test_a_stream_of_one_label_is_an_error_that_says_so(settings, tmp_path, sentences):
    rows = [{"text": text, "label": "refund", "session": 0} for text in sentences("refund", 20)]
    stream, asked = write(tmp_path / "s.jsonl", rows), write(tmp_path / "e.jsonl", rows)
    with pytest.raises(TooFewLabels, match=r"at least two labels with 3 examples each, but there are 'refund' \(10\)"):
        run_backtest(stream, asked, tmp_path / "out", settings)


@pytest.mark.parametrize("per_class", [1, 2])
def test_a_memory_of_one_or_two_samples_of_a_label_is_enough(recorded, settings, tmp_path, per_class):
    stream, evaluation = recorded
    small = settings.with_values({"memory.per_class": per_class})
    result = run_backtest(stream, evaluation, tmp_path / "out", small)
    assert result.sessions[-1].acc_seen > 0.8
    assert result.memory.samples == 4 * per_class


def test_the_first_version_is_compared_with_after_the_registry_has_let_go_of_it(recorded, settings, tmp_path):
    """As it does when ten newer versions have been promoted."""
    out, plain = tmp_path / "out", tmp_path / "plain"
    settings = settings.with_values({"lora.enabled": False})

    def forget(session) -> None:
        if session.session == 1:
            shutil.rmtree(out / "state" / "registry" / "versions" / "v000001-head")
            # Another process goes on, and has only what lies on the disk.
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_backtest(*recorded, out, settings, on_session=forget)
    result = run_backtest(*recorded, out, settings)
    assert [one.acc_first for one in result.sessions] == [
        one.acc_first for one in run_backtest(*recorded, plain, settings).sessions
    ]
