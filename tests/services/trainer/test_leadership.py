"""Two trainers on one registry, in threads and as processes."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
import yaml

from perdure.registry import Lease
from perdure_services.trainer.leadership import Leadership
from perdure_services.trainer.trainer import Trainer
from perdure_services.trainer.turn_process import TurnProcess

SECONDS = 2.0


@pytest.fixture
def leader(settings_in):
    made = []

    def make(lost=None, start=True, **values):
        settings = settings_in(**{"trainer__lease_seconds": SECONDS, **values})
        made.append(Leadership(settings, lost or (lambda reason: None)))
        if start:
            made[-1].start()
        return made[-1]

    yield make
    for one in made:
        one.stop()


def silence(leadership):
    """As if its process were stopped: it looks no more. What is returned is set when a look that had begun is over."""
    quiet = threading.Event()
    leadership._look = lambda lease: quiet.set()
    return quiet


def test_one_leads_and_the_other_waits_until_it_stops(leader, until, caplog):
    with caplog.at_level(logging.INFO):
        first = leader()
        until(lambda: first.leads)
        second = leader()
        time.sleep(2 * SECONDS)
        assert (first.leads, second.leads) == (True, False)
        begun = time.monotonic()
        first.stop()
        assert not first.leads
        until(lambda: second.leads)
        assert time.monotonic() - begun < SECONDS, "what was let go of need not run out"
        until(lambda: "this trainer leads, in term 2" in caplog.text)
    said = [record.getMessage() for record in caplog.records]
    assert sum("this trainer waits, and takes over when nothing is heard" in one for one in said) == 1


def test_a_silent_one_is_succeeded_and_told_when_it_wakes(leader, until, caplog):
    lost = []
    first = leader(lost.append)
    until(lambda: first.leads)
    second = leader()
    look, first._look = first._look, lambda lease: None
    begun = time.monotonic()
    until(lambda: second.leads)
    assert SECONDS * 0.6 < time.monotonic() - begun < SECONDS * 3
    assert not first.leads, "by its own clock"
    first._look = look
    until(lambda: lost)
    assert "has taken term 2" in lost[0]
    assert "does not lead any more" in caplog.text
    assert second.leads
    assert second.term == 2


def test_without_a_lease_everyone_leads(leader):
    one, other = leader(trainer__lease_seconds=0), leader(trainer__lease_seconds=0)
    assert one.leads
    assert other.settle()
    assert one.term == 0
    assert one.problem() == ""


def test_settling_ends_when_another_is_at_work(leader, until):
    first = leader()
    assert first.settle()
    second = leader()
    begun = time.monotonic()
    assert not second.settle()
    silent = second.holder
    assert silent
    assert time.monotonic() - begun < 2 * SECONDS
    assert silence(first).wait(10)
    third = leader()
    assert third.settle() or third.holder != silent, "one that is silent is waited for"


def test_settling_ends_with_the_process(leader, until):
    first = leader(trainer__lease_seconds=60)
    until(lambda: first.leads)
    silence(first)
    second = leader(trainer__lease_seconds=60)
    threading.Timer(0.3, second.stop).start()
    begun = time.monotonic()
    assert not second.settle()
    assert time.monotonic() - begun < 5


def test_a_registry_that_cannot_be_read_is_told_once_and_tried_again(leader, until, caplog, tmp_path):
    with caplog.at_level(logging.INFO):
        one = leader(start=False)
        beat = tmp_path / "registry" / "lease" / "beat.json"
        beat.parent.mkdir(parents=True)
        beat.write_text("{ half")
        one.start()
        time.sleep(1.5 * SECONDS)
        assert not one.leads
        assert one.problem() == ""
        beat.unlink()
        until(lambda: one.leads)
        # It leads before it says so.
        until(lambda: "can be looked at again" in caplog.text)
    said = [record.getMessage() for record in caplog.records]
    assert sum("the lease cannot be looked at now" in each for each in said) == 1
    assert sum("can be looked at again" in each for each in said) == 1


def test_who_waits_reads_nothing_and_runs_no_turn(settings_in, arrive, until, tmp_path):
    settings = settings_in(trainer__lease_seconds=SECONDS, trainer__poll_seconds=0.05, trainer__min_new_labels=1)
    ran = tmp_path / "ran"
    process = TurnProcess(settings, lambda config: [sys.executable, "-S", "-c", f"open({str(ran)!r}, 'w')"])
    other = Lease(settings.registry.url, holder="other", seconds=SECONDS)
    assert other.tend()
    trainer = Trainer(settings, process)
    arrive(settings, "a", "b")
    trainer.start()
    try:
        for _ in range(8):
            time.sleep(SECONDS / 4)
            other.tend()
        assert not (tmp_path / "memory").exists()
        assert not ran.exists()
        assert trainer.metrics.registry.get_sample_value("perdure_trainer_leader") == 0
        other.release()
        until(ran.exists)
        assert trainer.metrics.registry.get_sample_value("perdure_trainer_leader") == 1
    finally:
        trainer.stop()


def test_a_turn_whose_term_is_over_is_ended(settings_in, arrive, until, tmp_path, gone, caplog):
    settings = settings_in(trainer__lease_seconds=SECONDS, trainer__poll_seconds=0.05, trainer__min_new_labels=1)
    pid, arguments = tmp_path / "pid", tmp_path / "arguments"
    code = (
        f"import os, sys, time; open({str(arguments)!r}, 'w').write(' '.join(sys.argv)); "
        f"open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    trainer = Trainer(settings, TurnProcess(settings, lambda config: [sys.executable, "-S", "-c", code]))
    arrive(settings, "a", "b")
    trainer.start()
    try:
        until(lambda: pid.exists() and pid.read_text())
        assert arguments.read_text().endswith("--term 1")
        other = Lease(settings.registry.url, holder="other", seconds=SECONDS)
        # It has been silent for as long as it takes, by the other's clock.
        other._clock = iter(range(0, 1000, 100)).__next__
        other.tend()
        other.tend()
        assert other.term == 2
        until(lambda: "the turn was ended, and promoted nothing" in caplog.text)
        gone(int(pid.read_text()))
        assert "other has taken term 2" in caplog.text
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
        assert trainer.metrics.registry.get_sample_value("perdure_turns_total", {"outcome": "fenced"}) == 1
    finally:
        trainer.stop()


def test_a_turn_that_finds_its_term_over_is_not_a_failure(settings_in, arrive, until, caplog, tmp_path):
    settings = settings_in(trainer__lease_seconds=60, trainer__poll_seconds=0.05, trainer__min_new_labels=1)
    code = "import sys; print('perdure: term 1 is over', file=sys.stderr); sys.exit(4)"
    trainer = Trainer(settings, TurnProcess(settings, lambda config: [sys.executable, "-S", "-c", code]))
    arrive(settings, "a", "b")
    trainer.start()
    try:
        until(lambda: "promoted nothing: perdure: term 1 is over" in caplog.text)
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    finally:
        trainer.stop()


def test_once_leaves_the_turn_to_the_one_that_leads(settings_in, arrive, tmp_path):
    settings = settings_in(trainer__lease_seconds=SECONDS)
    arrive(settings, "a")
    other = Lease(settings.registry.url, holder="other", seconds=SECONDS)
    other.tend()
    stop = threading.Event()

    def renewing():
        while not stop.wait(SECONDS / 4):
            other.tend()

    renewer = threading.Thread(target=renewing)
    renewer.start()
    trainer = Trainer(settings)
    try:
        assert trainer.once() == 3
    finally:
        stop.set()
        renewer.join()
        trainer.stop()
    assert not (tmp_path / "memory").exists()


# ── as a process ──
@pytest.fixture
def free_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_the_command_tells_its_series_and_its_health(settings_in, tmp_path, until, free_port):
    settings = settings_in(trainer__port=free_port, trainer__lease_seconds=SECONDS)
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    process = subprocess.Popen(
        [sys.executable, "-c", "from perdure.cli import main; main()", "train", "--config", str(config)],
        env={**environ, "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{free_port}"

    def told(path):
        try:
            return httpx.get(f"{url}{path}", timeout=2)
        except httpx.ConnectError:
            return None

    try:
        until(lambda: told("/healthz") is not None, 30)
        assert told("/healthz").json() == {"live": True, "reason": ""}
        until(lambda: "perdure_trainer_leader 1.0" in told("/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(5)
        process.stderr.close()
    # It has let go: the next one need not wait.
    assert Lease(settings.registry.url, holder="next", seconds=60).tend()
