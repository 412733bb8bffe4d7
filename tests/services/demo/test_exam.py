from __future__ import annotations

import threading

import pytest

from perdure.errors import PerdureError
from perdure.model.double import KeywordClassifier
from perdure_services.demo.exam import Exam

OLD = {"order": "order", "refund": "refund"}
NEW = {**OLD, "password": "password", "invoice": "invoice"}


@pytest.fixture
def loaded():
    return []


@pytest.fixture
def stop():
    return threading.Event()


@pytest.fixture
def exam(scenario, loaded, stop):
    def load(version):
        loaded.append(version)
        return KeywordClassifier(version, OLD if version == "v1" else NEW)

    return Exam(scenario, load, stop)


def test_only_rows_that_have_come_count(exam):
    assert [exam.accuracy("v1", wave) for wave in (0, 1, 2)] == pytest.approx([1, 2 / 3, 1 / 2])
    assert [exam.accuracy("v2", wave) for wave in (0, 1, 2)] == [1, 1, 1]


def test_a_version_is_asked_once(exam, loaded):
    exam.accuracy("v1", 0)
    exam.accuracy("v2", 1)
    exam.accuracy("v1", 2)
    assert loaded == ["v1", "v2"]


def test_requests_of_a_wave(exam, scenario):
    assert exam.requests("v1", scenario.waves[0]).tolist() == [True, False, False, False]


def test_a_demo_that_stops_does_not_wait_for_it(exam, stop):
    stop.set()
    with pytest.raises(PerdureError, match="stopping"):
        exam.accuracy("v1", 0)
