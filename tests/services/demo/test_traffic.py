from __future__ import annotations

import time

import pytest

from perdure.errors import PerdureError
from perdure_services.demo import traffic as traffic_module
from perdure_services.demo.progress import Answer
from perdure_services.demo.traffic import Traffic


@pytest.fixture
def traffic(api, progress, monkeypatch):
    monkeypatch.setattr(traffic_module, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(traffic_module, "_thinking_seconds", lambda number: 0.02)
    opened = []

    def make(rate=1000.0, tick=lambda: None, journal=progress):
        opened.append(Traffic(api.url, rate, journal, tick))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def test_every_request_is_sent_once_and_what_is_said_of_it(traffic, api, progress, scenario):
    traffic().send(scenario.waves[0])
    assert sorted(fields["text"] for fields in api.asked("/v1/predict")) == [
        "order late", "password again", "password lost", "refund my order",
    ]  # fmt: skip
    ids = {answer.id: number for number, answer in progress.answers.items()}
    said = {ids[fields["id"]]: fields["label"] for fields in api.asked("/v1/feedback")}
    # The third is told wrong; of the last nobody says anything.
    assert said == {0: "order", 1: "password", 2: "order"}
    assert progress.told == {0, 1, 2}
    assert set(progress.answers) == {0, 1, 2, 3}
    assert progress.answers[1].label == "password"
    assert progress.answers[1].version == "v1"
    assert progress.answers[1].seconds > 0
    assert progress.failed == 0


def test_what_was_answered_is_not_sent_again(traffic, api, progress, scenario):
    progress.answered(Answer(0, "id-old", "order", 0.5, "v1", True, 0.1))
    progress.answered(Answer(1, "id-told", "order", 0.5, "v1", True, 0.1))
    progress.taught(1)
    traffic().send(scenario.waves[0])
    assert len(api.asked("/v1/predict")) == 2
    assert {"id": "id-old", "label": "order", "source": "customer"} in api.asked("/v1/feedback")
    assert "id-told" not in [fields["id"] for fields in api.asked("/v1/feedback")]
    traffic().send(scenario.waves[0])
    assert len(api.asked("/v1/predict")) == 2


def test_numbers_go_on_over_waves(traffic, api, progress, scenario):
    traffic().send(scenario.waves[1])
    assert set(progress.answers) == {4, 5}
    assert [fields.get("subject") for fields in api.asked("/v1/predict") if fields["text"] == "invoice"] == ["anna"]
    assert [fields.get("subject") for fields in api.asked("/v1/predict") if fields["text"] == "order again"] == [
        "customer-4"
    ]


def test_the_rate_is_kept(traffic, api, scenario):
    traffic(rate=10.0).send(scenario.waves[0])
    times = [at for (path, _), at in zip(api.requests, api.times, strict=True) if path == "/v1/predict"]
    assert 0.28 < times[-1] - times[0] < 1.5


def test_feedback_comes_after_a_moment(traffic, api, scenario, monkeypatch):
    monkeypatch.setattr(traffic_module, "_thinking_seconds", lambda number: 0.3)
    traffic().send(scenario.waves[0])
    first = next(at for (path, _), at in zip(api.requests, api.times, strict=True) if path == "/v1/feedback")
    assert first - api.times[0] > 0.28


@pytest.mark.parametrize("path", ["/v1/predict", "/v1/feedback"])
def test_a_failed_request_is_counted_and_sent_again(traffic, api, progress, scenario, path):
    api.broken = [(path, 503), (path, 500)]
    traffic().send(scenario.waves[0])
    assert progress.failed == 2
    assert len(progress.answers) == 4
    assert progress.told == {0, 1, 2}


def test_one_that_fails_for_good_ends_the_demo(traffic, api, scenario):
    api.broken = [("/v1/predict", 503)] * 100
    with pytest.raises(PerdureError, match=r"refused the predict of request \d 5 times.*503"):
        traffic().send(scenario.waves[0])


def test_why_the_api_is_gone_comes_first(traffic, api, scenario):
    def died():
        raise PerdureError("`perdure serve` ended with exit code 1")

    api.broken = [("/v1/predict", 503)] * 100
    with pytest.raises(PerdureError, match="perdure serve"):
        traffic(tick=died).send(scenario.waves[0])


def test_an_interruption_loses_no_answer(traffic, api, progress_in, scenario):
    api.delay = 0.3
    begun = time.monotonic()

    def interrupt():
        if len(api.requests) >= 2:
            raise KeyboardInterrupt

    first = progress_in()
    with pytest.raises(KeyboardInterrupt):
        traffic(tick=interrupt, journal=first).send(scenario.waves[0])
    assert time.monotonic() - begun < 3
    asked = len(api.asked("/v1/predict"))
    assert len(first.answers) == asked
    again = progress_in()
    api.delay = 0.0
    traffic(journal=again).send(scenario.waves[0])
    assert len(api.asked("/v1/predict")) == 4
    assert again.told == {0, 1, 2}


def test_the_environment_leads_nothing_astray(traffic, api, progress, scenario, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    traffic().send(scenario.waves[1])
    assert progress.failed == 0
