"""What a trainer tells Prometheus and probes."""

from __future__ import annotations

import time

import pytest

from perdure.config import TrainerSettings
from perdure.turn import CandidateResult, TurnResult
from perdure_services.trainer import leadership as leadership_module
from perdure_services.trainer import trainer as trainer_module
from perdure_services.trainer.metrics import OUTCOMES, TrainerMetrics, outcome_of
from perdure_services.trainer.trainer import Trainer
from perdure_services.trainer.turn_process import Outcome, TurnProcess

NAMES = {
    "perdure_turns_total": "counter",
    "perdure_turn_seconds": "histogram",
    "perdure_turn_running": "gauge",
    "perdure_turn_started_timestamp_seconds": "gauge",
    "perdure_turn_ended_timestamp_seconds": "gauge",
    "perdure_turn_limit_seconds": "gauge",
    "perdure_drift_alarm": "gauge",
    "perdure_memory_samples": "gauge",
    "perdure_memory_quarantined": "gauge",
    "perdure_stream_lag_records": "gauge",
    "perdure_trainer_leader": "gauge",
}


def done(*outcomes: str, gate: int = 2, drifted: bool = False) -> Outcome:
    candidates = tuple(CandidateResult(f"v{each}", "head", each, "", 1.0, 1.0) for each in outcomes)
    result = TurnResult(1, None, "v1", candidates, gate={"learn": gate} if gate else {}, drifted=drifted)
    return Outcome("done", 0, result=result, seconds=3.0)


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"perdure_{name}", labels)


def test_the_names_are_those_that_dashboards_and_alerts_ask_for():
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family.type
        for family in TrainerMetrics(TrainerSettings()).registry.collect()
        if family.name.startswith("perdure_")
    }
    assert families == NAMES


@pytest.mark.parametrize(
    ("outcome", "name"),
    [
        (done("promote"), "promoted"),
        (done("keep", "promote"), "promoted"),
        (done("promote", "stale"), "promoted"),
        (done("stale"), "stale"),
        (done("keep", "inconclusive"), "kept"),
        (done("inconclusive"), "inconclusive"),
        (done(), "nothing"),
        (done(gate=0), "nothing"),
        (Outcome("failed", 1), "failed"),
        (Outcome("timeout", -9), "timed_out"),
        (Outcome("fenced", 4), "fenced"),
        (Outcome("busy", 3), "busy"),
        (Outcome("stopped", 0), "stopped"),
    ],
)
def test_turns_are_counted_by_what_came_of_them(outcome, name):
    metrics = TrainerMetrics(TrainerSettings(turn_timeout_seconds=77))
    assert {value(metrics, "turns_total", outcome=each) for each in OUTCOMES} == {0.0}, "all are there from the start"
    metrics.begun()
    assert value(metrics, "turn_running") == 1
    metrics.ended(outcome)
    assert outcome_of(outcome) == name
    assert {each: value(metrics, "turns_total", outcome=each) for each in OUTCOMES} == {
        each: float(each == name) for each in OUTCOMES
    }
    assert value(metrics, "turn_running") == 0
    assert value(metrics, "turn_limit_seconds") == 77
    assert value(metrics, "turn_seconds_count") == (name not in ("busy", "stopped"))
    assert abs(value(metrics, "turn_ended_timestamp_seconds") - time.time()) < 10


def test_the_drift_alarm_is_that_of_the_last_turn_that_said_something():
    metrics = TrainerMetrics(TrainerSettings())
    for outcome, alarm in (
        (done("keep", drifted=True), 1),
        (Outcome("failed", 1), 1),
        (done(gate=0), 1),
        (done("keep"), 0),
    ):
        metrics.ended(outcome)
        assert value(metrics, "drift_alarm") == alarm


class Slow(TurnProcess):
    """A turn that lasts until it is told to end."""

    def __init__(self, settings, until):
        super().__init__(settings)
        self._until = until
        self.over = False
        self.terms = []

    def run(self, term=0):
        self.terms.append(term)
        self._until(lambda: self.over, 20)
        return done("keep")

    def stop(self):
        self.over = True


@pytest.fixture
def running(settings_in, until):
    made = []

    def start(**values):
        settings = settings_in(
            **{
                "trainer__poll_seconds": 0.05,
                "trainer__interval_seconds": 1000,
                "trainer__min_new_labels": 2,
                "trainer__lease_seconds": 0.9,
                **values,
            }
        )
        trainer = Trainer(settings, Slow(settings, until))
        made.append(trainer)
        trainer.start()
        return trainer, settings

    yield start
    for trainer in made:
        trainer.stop()


def test_what_memory_holds_and_what_waits_before_it(running, arrive, until):
    trainer, settings = running()
    metrics = trainer.metrics
    until(lambda: value(metrics, "trainer_leader") == 1)
    arrive(settings, "a")
    until(lambda: value(metrics, "memory_samples") == 1)
    assert value(metrics, "stream_lag_records") == 0
    begun = time.time()
    arrive(settings, "b")
    until(lambda: value(metrics, "turn_running") == 1)
    assert value(metrics, "turn_started_timestamp_seconds") >= begun - 1
    arrive(settings, "c", "d")
    until(lambda: value(metrics, "stream_lag_records") == 4)
    assert value(metrics, "memory_samples") == 2
    trainer._process.over = True
    until(lambda: value(metrics, "turns_total", outcome="kept") >= 1)
    until(lambda: value(metrics, "memory_samples") == 4)
    assert trainer._process.terms[0] == 1, "the turn knows its term"


def test_a_turn_far_beyond_its_limit_is_no_health(running, arrive, until, monkeypatch):
    monkeypatch.setattr(trainer_module, "OVERDUE_SECONDS", 0.2)
    trainer, settings = running(trainer__turn_timeout_seconds=0.3)
    assert trainer.problem() == ""
    arrive(settings, "a", "b")
    until(lambda: value(trainer.metrics, "turn_running") == 1)
    assert trainer.problem() == ""
    until(lambda: "should have been killed after 0.3 s" in trainer.problem())
    trainer._process.over = True
    until(lambda: trainer.problem() == "")


def test_a_look_that_hangs_is_no_health(running, until, monkeypatch):
    monkeypatch.setattr(trainer_module, "STUCK_SECONDS", 0.3)
    trainer, _ = running()
    until(lambda: value(trainer.metrics, "trainer_leader") == 1)
    with trainer._inbox._use:
        until(lambda: "a look at the stream has taken" in trainer.problem())
    until(lambda: trainer.problem() == "")


def test_a_schedule_that_has_ended_is_no_health(running, until):
    trainer, _ = running()
    assert trainer.problem() == ""
    trainer._schedule.stop()
    until(lambda: "the thread that starts turns does not run" in trainer.problem())


def test_a_lease_that_nobody_looks_at_is_no_health(running, until, monkeypatch):
    monkeypatch.setattr(leadership_module, "STUCK_SECONDS", -0.5)
    trainer, _ = running()
    until(lambda: value(trainer.metrics, "trainer_leader") == 1)
    hang = []

    def hanging(lease):
        until(lambda: hang, 20)

    trainer._leadership._look = hanging
    until(lambda: "the lease was last looked at" in trainer.problem())
    hang.append(True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_lease_whose_thread_has_ended_is_no_health(running, until):
    trainer, _ = running()
    until(lambda: value(trainer.metrics, "trainer_leader") == 1)

    def broken(lease):
        raise RuntimeError("an error that nobody thought of")

    trainer._leadership._look = broken
    until(lambda: "thread that keeps the lease has ended" in trainer.problem())
