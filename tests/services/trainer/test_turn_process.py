from __future__ import annotations

import json
import logging
import os
import sys
import threading
import time
from pathlib import Path

import pytest

from perdure.config import load_settings
from perdure.turn import CandidateResult, TurnResult
from perdure_services.trainer import turn_process
from perdure_services.trainer.turn_process import TurnProcess, update_command, without_settings

RESULT = TurnResult(3, "v2", "v3", (CandidateResult("v3", "head", "promote", "Promote.", 1.0, 1.0),), {"learn": 5})


@pytest.fixture
def process(settings_in):
    """A turn that is this program, with the settings' file as its argument."""

    def make(code: str, **values) -> TurnProcess:
        return TurnProcess(settings_in(**values), lambda config: [sys.executable, "-S", "-c", code, str(config)])

    return make


def printing(result: TurnResult) -> str:
    return f"print({json.dumps(result.to_json())!r})"


def test_a_turn_that_is_done_has_a_result(process):
    outcome = process(printing(RESULT)).run()
    assert outcome.ending == "done"
    assert outcome.result == RESULT
    assert outcome.seconds > 0


@pytest.mark.parametrize(
    ("code", "ending", "status", "problem"),
    [
        ("import sys; print('perdure: held by process 7', file=sys.stderr); sys.exit(3)", "busy", 3, "by process 7"),
        ("import sys; print('a\\n\\nperdure: bad\\n', file=sys.stderr); sys.exit(1)", "failed", 1, "1: perdure: bad"),
        ("import sys; sys.exit(2)", "failed", 2, "exit code 2: it said nothing"),
        ("import os; os.kill(os.getpid(), 9)", "failed", -9, "signal 9"),
        ("print('no json')", "failed", 0, "'no json"),
        ("print('{}')", "failed", 0, "cannot be read"),
        ("pass", "failed", 0, "cannot be read"),
    ],
)
def test_other_endings_say_what_happened(process, code, ending, status, problem):
    outcome = process(code).run()
    assert (outcome.ending, outcome.code, outcome.result) == (ending, status, None)
    assert problem in outcome.problem


def test_it_gets_our_settings_and_none_of_the_environment(process, monkeypatch, tmp_path):
    monkeypatch.setenv("PERDURE_SEED", "8")
    monkeypatch.setenv("PERDURE_DEVICE", "cuda")
    monkeypatch.setenv("PERDURE_MEMORY__PER_CLASS", "9")
    monkeypatch.setenv("PERDURE_OTHER", "kept")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    copy = (
        "import os, shutil, sys, json; shutil.copy(sys.argv[1], {0!r}); "
        "open({1!r}, 'w').write(json.dumps(dict(os.environ))); print('x' * (os.stat(sys.argv[1]).st_mode & 0o77))"
    )
    made = process(
        copy.format(str(tmp_path / "copy.yaml"), str(tmp_path / "env")), memory__per_class=7, model__threads=1
    )
    made.run()
    environ = json.loads((tmp_path / "env").read_text())
    assert "PERDURE_SEED" not in environ
    assert "PERDURE_DEVICE" not in environ
    assert "PERDURE_MEMORY__PER_CLASS" not in environ
    assert environ["PERDURE_OTHER"] == "kept"
    assert environ["OMP_NUM_THREADS"] == "1"
    assert load_settings(tmp_path / "copy.yaml", environ={}) == made._settings


def test_threads_stay_as_they_are_unless_set(process, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    outcome = process("import os, sys; print(os.environ['OMP_NUM_THREADS'], file=sys.stderr); sys.exit(1)").run()
    assert outcome.problem.endswith(": 5")


def test_its_errors_go_to_our_log(process, caplog):
    with caplog.at_level(logging.INFO, logger=turn_process.__name__):
        process("import sys; print('one\\n\\n  two', file=sys.stderr)").run()
    assert [record.getMessage() for record in caplog.records] == ["turn: one", "turn: two"]


def test_one_that_takes_too_long_is_killed(process, monkeypatch, tmp_path, gone):
    monkeypatch.setattr(turn_process, "GRACE_SECONDS", 0.2)
    code = f"import os, signal, time; signal.signal(15, signal.SIG_IGN); open({str(tmp_path / 'pid')!r}, 'w').write("
    code += "str(os.getpid())); time.sleep(60)"
    begun = time.monotonic()
    outcome = process(code, trainer__turn_timeout_seconds=0.7).run()
    assert 0.7 < time.monotonic() - begun < 5
    assert (outcome.ending, outcome.code) == ("timeout", -9)
    assert "turn_timeout_seconds" in outcome.problem
    gone(int((tmp_path / "pid").read_text()))


def test_stopping_ends_the_one_that_runs_and_starts_no_other(process, tmp_path, until):
    running = process(f"open({str(tmp_path / 'here')!r}, 'a').write('x'); import time; time.sleep(60)")
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(running.run()))
    thread.start()
    until((tmp_path / "here").exists)
    begun = time.monotonic()
    running.stop()
    thread.join(5)
    assert time.monotonic() - begun < 3
    assert outcomes[0].ending == "stopped"
    assert running.run().ending == "stopped"
    assert (tmp_path / "here").read_text() == "x"


def test_no_file_is_left_behind(process, monkeypatch, tmp_path):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    process(printing(RESULT)).run()
    assert not list((tmp_path / "scratch").iterdir())


def test_the_command_runs_one_update():
    assert update_command(Path("some.yaml"))[3:] == ("update", "--json", "--config", "some.yaml")


def test_only_settings_are_taken_out_of_the_environment():
    kept = {"PATH": "/bin", "PERDURE_X": "1", "OTHER__SEED": "2"}
    assert without_settings({**kept, "PERDURE_SEED": "3", "PERDURE_MODEL__NAME": "m"}) == kept
    assert "PATH" in without_settings(os.environ)


@pytest.mark.parametrize(("niceness", "expected"), [(0, 0), (7, 7)])
def test_a_turn_stands_back_from_the_api(process, niceness, expected):
    code = f"import os, sys; sys.exit(20 + os.nice(0) - {os.nice(0)})"
    assert process(code, **{"trainer.niceness": niceness}).run().code == 20 + expected
