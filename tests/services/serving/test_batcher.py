from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for

import numpy as np
import pytest

from perdure.model.base import Scores
from perdure.registry import Promotion
from perdure_services.serving import admission
from perdure_services.serving import batcher as module
from perdure_services.serving.batcher import Batcher
from perdure_services.serving.champion import Champion
from perdure_services.serving.metrics import Metrics
from perdure_services.serving.refusal import Refusal


@pytest.fixture
def champion(scripted):
    def make(version="v1", script=None):
        promotion = Promotion(number=1, version=version, at=1.0, by="tests", reason="a test", kind="promote")
        return Champion(scripted(version, script), promotion, since=1.0)

    return make


@pytest.fixture
def start():
    started = []

    def begin(source, *, threads=1, max_batch=4, max_queue=100, queue_seconds=60.0, batch_seconds=60.0, cut=640):
        batcher = Batcher(
            source if callable(source) else lambda: source,
            threads=threads,
            max_batch=max_batch,
            max_queue=max_queue,
            queue_seconds=queue_seconds,
            batch_seconds=batch_seconds,
            cut=cut,
            metrics=Metrics(),
        )
        batcher.start()
        started.append(batcher)
        return batcher

    yield begin
    for batcher in started:
        batcher.close(5)
        assert not batcher.alive


def hold(champion, batcher, until):
    """Keeps the thread busy with one request, so that what comes next waits together."""
    champion.classifier.gate.clear()
    first = batcher.submit(["first"])
    until(lambda: champion.classifier.calls)
    return first


def test_a_lone_request_does_not_wait_for_company(champion, start):
    batcher = start(champion())
    start_time = time.monotonic()
    answer = batcher.submit(["a refund"]).result(5)
    assert time.monotonic() - start_time < 0.5
    assert answer.version == "v1"
    assert answer.scores.names() == ("refund@v1",)


def test_what_waits_is_answered_at_once_in_order_and_up_to_the_bound(champion, start, until):
    served = champion()
    batcher = start(served, max_batch=4)
    first = hold(served, batcher, until)
    futures = [batcher.submit(texts) for texts in (["a1"], ["b1", "b2"], ["c1", "c2"], ["d1", "d2", "d3"])]
    served.classifier.gate.set()
    wait_for([first, *futures], 5)
    assert served.classifier.calls == [("first",), ("a1", "b1", "b2"), ("c1", "c2"), ("d1", "d2", "d3")]
    assert served.classifier.threads == {"perdure-batcher-0"}


def test_each_request_gets_its_own_rows(champion, start, until):
    served = champion()
    batcher = start(served, max_batch=10)
    hold(served, batcher, until)
    futures = [batcher.submit(texts) for texts in (["refund"], ["order", "password"], ["refund", "order"])]
    served.classifier.gate.set()
    names = [future.result(5).scores.names() for future in futures]
    assert names == [("refund@v1",), ("order@v1", "login@v1"), ("refund@v1", "order@v1")]


def test_a_request_larger_than_a_batch_is_answered_by_one_version(champion, start):
    versions = [champion("v1"), champion("v2")]
    batcher = start(lambda: versions.pop(0), max_batch=2)
    answer = batcher.submit(["refund", "order", "password", "order", "refund"]).result(5)
    assert answer.version == "v1"
    assert answer.scores.names() == ("refund@v1", "order@v1", "login@v1", "order@v1", "refund@v1")
    assert batcher.submit(["order"]).result(5).version == "v2"


def test_a_swap_falls_between_two_batches(champion, start, until):
    old, new = champion("v1"), champion("v2")
    current = [old]
    batcher = start(lambda: current[0])
    running = hold(old, batcher, until)
    waiting = batcher.submit(["order"])
    current[0] = new
    old.classifier.gate.set()
    assert (running.result(5).version, waiting.result(5).version) == ("v1", "v2")
    assert waiting.result().scores.names() == ("order@v2",)


def test_a_text_that_the_model_cannot_take_fails_alone(champion, start, until):
    good = champion()

    def script(texts):
        if "poison" in texts:
            raise RuntimeError("cannot take this")
        return good.classifier.scores(texts)

    served = champion("v1", script)
    batcher = start(served)
    hold(served, batcher, until)
    futures = [batcher.submit([text]) for text in ("order", "poison", "refund")]
    served.classifier.gate.set()
    assert futures[0].result(5).scores.names() == ("order@v1",)
    with pytest.raises(RuntimeError, match="cannot take this"):
        futures[1].result(5)
    assert futures[2].result(5).scores.names() == ("refund@v1",)


@pytest.mark.parametrize("probabilities", [np.array([[np.nan, 1]], np.float32), np.array([[1, 0], [1, 0]], np.float32)])
def test_an_answer_that_is_none_is_an_error(champion, start, probabilities):
    batcher = start(champion("v1", lambda texts: Scores(("a", "b"), probabilities)))
    with pytest.raises(ArithmeticError, match="v1"):
        batcher.submit(["x"]).result(5)


def test_rounding_past_one_is_cut(champion, start):
    rounded = np.array([[1.0000002, -1e-9]], np.float32)
    batcher = start(champion("v1", lambda texts: Scores(("a", "b"), rounded)))
    (prediction,) = batcher.submit(["x"]).result(5).scores.predictions(2)
    assert prediction.confidence == 1.0
    assert prediction.top[1][1] == 0.0


def test_the_queue_is_bounded_in_requests_and_in_text(champion, start, until, monkeypatch):
    served = champion()
    batcher = start(served, max_queue=2)
    hold(served, batcher, until)
    batcher.submit(["a"])
    batcher.submit(["b"])
    with pytest.raises(Refusal) as refusal:
        batcher.submit(["c"])
    assert (refusal.value.status_code, refusal.value.value) == (429, 2)
    served.classifier.gate.set()
    monkeypatch.setattr(admission, "MAX_QUEUE_CHARS", 10)
    until(lambda: batcher.idle_seconds < 60 and len(served.classifier.calls) == 2)
    served.classifier.gate.clear()
    running = batcher.submit(["x" * 50])
    until(lambda: len(served.classifier.calls) == 3)
    long = batcher.submit(["y" * 50])
    with pytest.raises(Refusal):
        batcher.submit(["z"])
    served.classifier.gate.set()
    wait_for([running, long], 5)
    calls = len(served.classifier.calls)
    served.classifier.gate.clear()
    last = [batcher.submit(["z"])]
    until(lambda: len(served.classifier.calls) > calls)
    last += [batcher.submit(["z"]), batcher.submit(["z"])]
    served.classifier.gate.set()
    assert len(wait_for(last, 5).done) == 3


def test_a_request_that_nobody_waits_for_any_more_is_not_computed(champion, start, until):
    served = champion()
    batcher = start(served)
    hold(served, batcher, until)
    gone, wanted = batcher.submit(["gone"]), batcher.submit(["order"])
    assert gone.cancel()
    served.classifier.gate.set()
    wanted.result(5)
    assert served.classifier.calls == [("first",), ("order",)]
    with pytest.raises(CancelledError):
        gone.result(0)


def test_what_is_too_late_is_not_computed(champion, start, until):
    served = champion()
    batcher = start(served)
    hold(served, batcher, until)
    late = batcher.submit(["late"], deadline=time.monotonic() + 0.05)
    wanted = batcher.submit(["order"], deadline=time.monotonic() + 60)
    time.sleep(0.06)
    served.classifier.gate.set()
    wanted.result(5)
    with pytest.raises(Refusal, match="in time") as refusal:
        late.result(5)
    assert refusal.value.status_code == 504
    assert served.classifier.calls == [("first",), ("order",)]


def test_who_leaves_frees_the_place_at_once(champion, start, until):
    served = champion()
    batcher = start(served, max_queue=1)
    hold(served, batcher, until)
    gone = batcher.submit(["gone"])
    with pytest.raises(Refusal):
        batcher.check()
    assert gone.cancel()
    batcher.check()
    wanted = batcher.submit(["order"])
    served.classifier.gate.set()
    wanted.result(5)
    assert served.classifier.calls == [("first",), ("order",)]


def test_a_door_refuses_what_the_queue_would(champion, start, until):
    served = champion()
    batcher = start(served, max_queue=1)
    batcher.check()
    hold(served, batcher, until)
    batcher.check()
    waiting = batcher.submit(["order"])
    for refused in (batcher.check, lambda: batcher.submit(["refund"])):
        with pytest.raises(Refusal) as refusal:
            refused()
        assert refusal.value.status_code == 429
    served.classifier.gate.set()
    waiting.result(5)


def test_a_long_text_is_computed_apart_from_short_ones(champion, start, until, monkeypatch):
    served = champion()
    batcher = start(served, max_batch=8)
    for work in (20, 400):
        batcher._pace.learn(work, 0.002 + 0.0001 * work)
    monkeypatch.setattr(batcher._pace, "learn", lambda work, seconds: None)
    hold(served, batcher, until)
    long = "refund" + "x" * 290
    futures = [batcher.submit(texts) for texts in (["order"], [long, "password"], ["refund"])]
    served.classifier.gate.set()
    wait_for(futures, 5)
    assert served.classifier.calls[1:] == [("order", "refund"), ("password",), (long,)]
    names = [future.result().scores.names() for future in futures]
    assert names == [("order@v1",), ("refund@v1", "login@v1"), ("refund@v1",)]


def test_how_long_the_model_has_been_at_it_is_known(champion, start, until):
    served = champion()
    batcher = start(served)
    assert batcher.busy_seconds == 0.0
    running = hold(served, batcher, until)
    time.sleep(0.03)
    assert 0.03 <= batcher.busy_seconds < 5
    served.classifier.gate.set()
    running.result(5)
    until(lambda: batcher.busy_seconds == 0.0)


def test_the_thread_outlives_whatever_goes_wrong(champion, start):
    served = champion()
    broken = [True]

    def source():
        if broken.pop() if broken else False:
            raise OSError("no champion today")
        return served

    batcher = start(source)
    with pytest.raises(OSError, match="no champion today"):
        batcher.submit(["order"]).result(5)
    assert batcher.submit(["order"]).result(5).version == "v1"
    assert batcher.busy_seconds == 0.0 or batcher.alive


def test_without_a_champion_requests_are_refused(start):
    with pytest.raises(Refusal, match="no version is served") as refusal:
        start(lambda: None).submit(["a"]).result(5)
    assert refusal.value.status_code == 503
    assert "perdure fit" in refusal.value.do


def test_closing_answers_what_waits_and_refuses_what_comes(champion, start, until):
    served = champion()
    batcher = start(served)
    hold(served, batcher, until)
    waiting = batcher.submit(["order"])
    closing = threading.Thread(target=batcher.close, args=(5,))
    closing.start()
    until(lambda: batcher._closing)
    with pytest.raises(Refusal, match="stopping"):
        batcher.submit(["late"])
    served.classifier.gate.set()
    closing.join(5)
    assert waiting.result(0).scores.names() == ("order@v1",)
    assert not batcher.alive


def test_closing_waits_no_longer_than_told(champion, start, until):
    served = champion()
    batcher = start(served)
    hold(served, batcher, until)
    waiting = batcher.submit(["order"])
    batcher.close(0.05)
    with pytest.raises(Refusal, match="stopping"):
        waiting.result(0)
    served.classifier.gate.set()


def test_several_batches_run_at_once_where_the_version_allows_it(champion, start, until):
    served = champion()
    served.classifier.concurrent = True
    # Whatever runs is expected to take longer than this.
    batcher = start(served, threads=2, batch_seconds=1e-9)
    batcher.submit(["before"]).result(5)
    served.classifier.gate.clear()
    first = batcher.submit(["order"])
    until(lambda: ("order",) in served.classifier.calls)
    second = batcher.submit(["refund"])
    until(lambda: ("refund",) in served.classifier.calls)
    third = batcher.submit(["password"])
    served.classifier.gate.set()
    wait_for([first, second, third], 5)
    assert {thread for thread in served.classifier.threads if "batcher" in thread} == {
        "perdure-batcher-0",
        "perdure-batcher-1",
    }


def test_one_batch_at_a_time_where_it_does_not(champion, start, until):
    served = champion()
    batcher = start(served, threads=2)
    batcher.submit(["before"]).result(5)
    served.classifier.gate.clear()
    first = batcher.submit(["order"])
    until(lambda: ("order",) in served.classifier.calls)
    others = [batcher.submit(["refund"]), batcher.submit(["password"])]
    time.sleep(0.05)
    assert served.classifier.calls == [("before",), ("order",)]
    served.classifier.gate.set()
    wait_for([first, *others], 5)
    assert served.classifier.calls == [("before",), ("order",), ("refund", "password")]


def test_a_small_batch_waits_rather_than_run_beside_another_one(champion, start, until, monkeypatch):
    served = champion()
    served.classifier.concurrent = True
    batcher = start(served, threads=2, max_batch=32)
    batcher.submit(["before"]).result(5)
    # Ten characters, and ten for the text itself, take a fifth of what is fixed.
    monkeypatch.setattr(batcher._pace, "learn", lambda work, seconds: None)
    batcher._pace.fixed, batcher._pace.per_work = 0.001, 0.001 / 100
    served.classifier.gate.clear()
    futures = [batcher.submit(["x" * 10])]
    until(lambda: len(served.classifier.calls) == 2)
    wanted = int(module.WORTH_A_LANE * 5)
    futures += [batcher.submit(["x" * 10]) for _ in range(wanted - 1)]
    time.sleep(0.05)
    assert len(served.classifier.calls) == 2
    futures.append(batcher.submit(["x" * 10]))
    until(lambda: len(served.classifier.calls) == 3)
    assert len(served.classifier.calls[-1]) == wanted
    served.classifier.gate.set()
    wait_for(futures, 5)


def test_a_small_batch_does_not_wait_for_one_that_takes_long(champion, start, until, monkeypatch):
    served = champion()
    served.classifier.concurrent = True
    batcher = start(served, threads=2, batch_seconds=0.05)
    batcher.submit(["before"]).result(5)
    monkeypatch.setattr(batcher._pace, "learn", lambda work, seconds: None)
    batcher._pace.fixed, batcher._pace.per_work = 0.02, 1e-9
    served.classifier.gate.clear()
    futures = [batcher.submit(["order"])]
    until(lambda: len(served.classifier.calls) == 2)
    began = time.monotonic()
    # Nobody comes after it who would make the batcher look again.
    futures.append(batcher.submit(["refund"]))
    until(lambda: len(served.classifier.calls) == 3)
    assert 0.02 < time.monotonic() - began < 2
    served.classifier.gate.set()
    wait_for(futures, 5)
