"""`perdure train` as a process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from perdure.memory import open_memory

PROGRAM = """
import sys
from perdure_services.trainer import turn_process
turn_process.update_command = lambda config: [sys.executable, "-S", "-c", {turn!r}]
from perdure.cli import main
main()
"""


@pytest.fixture
def run(tmp_path):
    started = []

    def start(settings, *arguments, turn="pass"):
        config = tmp_path / "settings.yaml"
        config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
        command = [sys.executable, "-c", PROGRAM.format(turn=turn), "train", "--config", str(config), *arguments]
        started.append(
            subprocess.Popen(
                command, env={**environ, "OMP_NUM_THREADS": "1"}, cwd=tmp_path, stderr=subprocess.PIPE, text=True
            )
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait(5)
        process.stderr.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_turn_and_the_trainer_in_good_order(run, settings_in, arrive, tmp_path, until, gone, number):
    settings = settings_in(trainer__poll_seconds=0.1, trainer__min_new_labels=1)
    arrive(settings, "a")
    pid = tmp_path / "pid"
    turn = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    process = run(settings, turn=turn)
    until(lambda: pid.exists() and pid.read_text(), 20)
    begun = time.monotonic()
    process.send_signal(number)
    assert process.wait(6) == 0
    assert time.monotonic() - begun < 5
    gone(int(pid.read_text()))
    said = process.stderr.read()
    assert "a turn begins; labels that wait: 1" in said
    assert "Traceback" not in said


def test_a_killed_trainer_leaves_no_turn_behind(run, settings_in, arrive, tmp_path, until, gone):
    settings = settings_in(trainer__poll_seconds=0.1, trainer__min_new_labels=1)
    arrive(settings, "a")
    pid = tmp_path / "pid"
    turn = (
        "import sys; sys.path[:0] = " + repr(sys.path) + "; "
        "from perdure_services.trainer.child import follow_parent; follow_parent(); "
        f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    process = run(settings, turn=turn)
    until(lambda: pid.exists() and pid.read_text(), 20)
    process.kill()
    process.wait(5)
    gone(int(pid.read_text()))


def test_once(run, settings_in, arrive):
    settings = settings_in()
    process = run(settings, "--once")
    assert process.wait(20) == 0
    assert "nothing new" in process.stderr.read()
    arrive(settings, "a")
    process = run(settings, "--once", turn="import sys; print('perdure: no luck', file=sys.stderr); sys.exit(1)")
    assert process.wait(20) == 1
    assert "no luck" in process.stderr.read()


def test_wrong_settings_end_with_2_and_a_taken_memory_with_3(run, settings_in):
    settings = settings_in()
    process = run(settings, "--set", "trainer.cron='61 * * * *'")
    assert process.wait(20) == 2
    assert "trainer.cron cannot be '61 * * * *'" in process.stderr.read()
    with open_memory(settings):
        process = run(settings, "--once")
        assert process.wait(20) == 3
    assert f"process {os.getpid()}" in process.stderr.read()


def test_the_log_is_json_where_that_is_asked_for(run, settings_in, arrive):
    settings = settings_in(log__format="json")
    arrive(settings, "a")
    process = run(settings, "--once", turn="import sys; print('it says so', file=sys.stderr); print('no result')")
    _, told = process.communicate(timeout=30)
    lines = [json.loads(line) for line in told.splitlines()]
    assert {line["logger"].rpartition(".")[0] for line in lines} == {"perdure_services.trainer"}
    assert "turn: it says so" in [line["message"] for line in lines], "a turn's own lines stand within"
