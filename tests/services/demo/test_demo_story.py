"""The story with doubles of everything around it."""

from __future__ import annotations

import pytest

from perdure.config import Settings
from perdure.errors import PerdureError
from perdure.model.double import KeywordClassifier
from perdure.registry import Promotion
from perdure_services.demo import demo as demo_module
from perdure_services.demo import traffic as traffic_module
from perdure_services.demo.demo import Demo, Parts
from perdure_services.demo.exam import Exam
from perdure_services.demo.interruption import Interruption
from perdure_services.demo.lookout import Sight
from perdure_services.demo.view import View

OLD = {"order": "order", "refund": "refund"}
NEW = {**OLD, "password": "password", "invoice": "invoice"}


class Silent(View):
    def __init__(self):
        self.statuses, self.said = [], []

    def show(self, status):
        self.statuses.append(status)

    def say(self, text):
        self.said.append(text)


class Running:
    """Processes that are always fine."""

    def __init__(self, url):
        self.url, self.started, self.problem = url, [], None

    def fit(self, data, tick):
        self.started.append("fit")
        tick()

    def serve(self, tick):
        self.started.append("serve")
        return self.url

    def train(self):
        self.started.append("train")

    def check(self):
        if self.problem:
            raise PerdureError(self.problem)


class Scripted:
    """A lookout over a trainer that needs some looks to learn what was sent."""

    def __init__(self, progress, turn_result):
        self.promotions = [Promotion(number=1, version="v1", at=1.0, by="judge", reason="first")]
        self.turns = [turn_result(1, "v1")]
        self.registry = self
        self.never = False
        self.looks = 0
        self._progress = progress
        self._make = turn_result
        self._learned = 0

    def champion(self):
        return self.promotions[-1] if self.promotions else None

    def look(self):
        self.looks += 1
        if self.looks % 7 == 0:
            return None
        told = len(self._progress.told)
        behind = told > self._learned or self.never
        if behind and self.looks % 3 == 0 and not self.never:
            self._learned, behind = told, False
            number = len(self.turns) + 1
            self.turns.append(self._make(number, f"v{number}"))
            self.promotions.append(
                Promotion(number=len(self.promotions) + 1, version=f"v{number}", at=1.0, by="judge", reason="better")
            )
        return Sight(tuple(self.promotions), tuple(self.turns), int(behind), behind, not behind)


@pytest.fixture
def parts(scenario, progress, api, turn_result, monkeypatch):
    monkeypatch.setattr(demo_module, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(demo_module, "STEP_SECONDS", 0.005)
    monkeypatch.setattr(traffic_module, "_thinking_seconds", lambda number: 0.01)
    monkeypatch.setattr(
        Demo, "_load", lambda self, version: KeywordClassifier(version, OLD if version == "v1" else NEW)
    )
    lookout = Scripted(progress, turn_result)
    return Parts(
        scenario, Settings(), progress, Running(api.url), lookout, Silent(), Interruption(), rate=200.0
    )  # fmt: skip


@pytest.fixture
def story(parts, tmp_path):
    turns = []
    made = Demo(parts, tmp_path / "cache", turns.append)
    made.turns = turns
    yield made
    made.close()


def run(story, tmp_path):
    story.fit(tmp_path / "data")
    story.waves(story.start())


def test_from_the_fit_to_the_last_wave(story, parts, tmp_path, api):
    progress = parts.progress
    assert not story.finished
    run(story, tmp_path)
    assert story.finished
    assert parts.processes.started == ["fit", "train", "serve"]
    assert progress.first == "v1"
    assert len(api.asked("/v1/predict")) == 6
    assert set(progress.ended) == {1, 2}
    # Each turn was seen once, the fit's before any wave.
    assert [turn.result.number for turn in progress.turns] == list(range(1, len(parts.lookout.turns) + 1))
    assert progress.turns[0].wave == 0
    assert {turn.wave for turn in progress.turns[1:]} == {1, 2}
    assert story.turns == progress.turns
    # Each promotion after the fit's was examined when it came.
    promoted = [score.version for score in progress.scores if score.promotion]
    assert promoted == [entry.version for entry in parts.lookout.promotions[1:]]
    begin, *_, end = progress.scores
    assert (begin.wave, begin.sent, begin.version, begin.accuracy, begin.first) == (0, 0, "v1", 1.0, 1.0)
    assert (end.wave, end.sent, end.accuracy, end.first) == (2, 6, 1.0, 0.5)
    first_of_wave = next(score for score in progress.scores if score.wave == 1)
    assert (first_of_wave.version, first_of_wave.sent, first_of_wave.promotion) == ("v1", 0, False)
    assert progress.first_right[2] == (True, False)
    assert parts.view.statuses[-1].sent == 6
    assert any("The API answers" in text for text in parts.view.said)


def test_a_wave_that_is_over_is_not_run_again(story, parts, tmp_path, api):
    run(story, tmp_path)
    scores, said = len(parts.progress.scores), len(api.requests)
    story.fit(tmp_path / "data")
    story.waves(api.url)
    assert len(parts.progress.scores) == scores
    assert len(api.requests) == said
    assert parts.processes.started == ["fit", "train", "serve"]


def test_an_interruption_and_the_next_start(story, parts, tmp_path, api, progress_in):
    def interrupt(status):
        if status.sent >= 2:
            raise KeyboardInterrupt

    parts.view.show = interrupt
    with pytest.raises(KeyboardInterrupt):
        run(story, tmp_path)
    story.close()
    again = Parts(
        parts.scenario, parts.settings, progress_in(), Running(api.url), parts.lookout, Silent(), Interruption(), 200.0
    )
    parts.lookout._progress = again.progress
    second = Demo(again, tmp_path / "cache", lambda turn: None)
    assert not second.finished
    run(second, tmp_path)
    second.close()
    assert second.finished
    assert again.processes.started == ["train", "serve"]
    assert len(api.asked("/v1/predict")) == 6
    assert len({fields["text"] for fields in api.asked("/v1/predict")}) == 6
    assert again.progress.told == {0, 1, 2, 4, 5}
    numbers = [turn.result.number for turn in again.progress.turns]
    assert numbers == sorted(set(numbers))


def test_a_trainer_that_takes_too_long_is_not_waited_for(story, parts, tmp_path, monkeypatch):
    monkeypatch.setattr(demo_module, "SETTLE_SECONDS", 0.2)
    parts.lookout.never = True
    run(story, tmp_path)
    assert story.finished
    assert all(0.2 <= waited < 3 for waited in parts.progress.ended.values())
    assert any("the demo goes on" in text for text in parts.view.said)


def test_a_process_that_died_ends_it(story, parts, tmp_path):
    story.fit(tmp_path / "data")
    url = story.start()
    parts.processes.problem = "`perdure train` ended with exit code 1"
    with pytest.raises(PerdureError, match="perdure train"):
        story.waves(url)


def test_a_fit_that_promotes_nothing_ends_it(story, parts, tmp_path):
    parts.lookout.promotions = []
    with pytest.raises(PerdureError, match=r"fit\.log"):
        story.fit(tmp_path / "data")
    assert parts.progress.first is None


def test_an_exam_that_fails_ends_it(story, parts, tmp_path):
    def fail(version):
        raise PerdureError("damaged")

    story._exam = Exam(parts.scenario, fail, parts.interruption.stop)
    with pytest.raises(PerdureError, match="damaged"):
        run(story, tmp_path)
