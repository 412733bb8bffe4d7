from __future__ import annotations

import logging
import threading
import time

import numpy as np
import pytest

from perdure.errors import RegistryError, RegistryUnavailable, VersionDamaged
from perdure.model.base import Scores
from perdure.registry import Remembered
from perdure_services.serving import champion as module
from perdure_services.serving.champion import ChampionWatcher
from perdure_services.serving.metrics import KEPT_VERSIONS, Metrics


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def watcher(registry, shelf, metrics):
    return ChampionWatcher(registry, shelf, interval=0.01, metrics=metrics)


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    present = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: present[0])
    return present


def value(metrics, name, **labels):
    return metrics.registry.get_sample_value(f"perdure_{name}", labels)


def served(watcher):
    return watcher.current.version, watcher.current.promotion.number


def test_nothing_is_served_before_the_first_promotion(watcher, registry, publish):
    publish(registry, "v1", promote=False)
    watcher.refresh()
    assert watcher.current is None
    assert watcher.problem is None


def test_the_newest_promotion_is_loaded_and_warmed_up_before_it_serves(watcher, registry, publish, shelf, metrics):
    publish(registry, "v1")
    watcher.refresh()
    assert served(watcher) == ("v1", 1)
    assert shelf.made["v1"][0].calls == [module.WARM_UP]
    publish(registry, "v2")
    watcher.refresh()
    assert served(watcher) == ("v2", 2)
    assert value(metrics, "swaps_total") == 2
    assert value(metrics, "champion_info", version="v2", promotion="2") == 1
    assert value(metrics, "champion_info", version="v1", promotion="1") is None


def test_a_rollback_is_followed_like_any_promotion(watcher, registry, publish):
    for name in ("v1", "v2"):
        publish(registry, name)
        watcher.refresh()
    registry.rollback(by="tests", reason="v2 is bad")
    watcher.refresh()
    assert served(watcher) == ("v1", 3)


def test_a_look_that_finds_nothing_new_loads_nothing(watcher, registry, publish, shelf):
    publish(registry, "v1")
    for _ in range(3):
        watcher.refresh()
    assert shelf.asked == ["v1"]


def test_the_version_that_serves_is_not_loaded_again_when_it_is_promoted_again(
    watcher, registry, publish, shelf, metrics
):
    publish(registry, "v1")
    watcher.refresh()
    registry.promote("v1", reason="once more", by="tests")
    watcher.refresh()
    assert served(watcher) == ("v1", 2)
    assert shelf.asked == ["v1"]
    assert value(metrics, "swaps_total") == 1
    assert value(metrics, "champion_info", version="v1", promotion="2") == 1


def test_the_old_version_serves_while_the_new_one_loads(watcher, registry, publish, shelf):
    publish(registry, "v1")
    watcher.refresh()
    shelf.gate.clear()
    publish(registry, "v2")
    loading = threading.Thread(target=watcher.refresh)
    loading.start()
    while len(shelf.asked) < 2:
        pass
    assert served(watcher) == ("v1", 1)
    shelf.gate.set()
    loading.join(5)
    assert served(watcher) == ("v2", 2)


@pytest.mark.parametrize("error", [VersionDamaged("head.safetensors is altered"), OSError("gone"), KeyError("weights")])
def test_a_version_that_cannot_be_loaded_leaves_the_old_one(
    watcher, registry, publish, shelf, metrics, clock, caplog, error
):
    caplog.set_level(logging.ERROR, logger=module.__name__)
    publish(registry, "v1")
    watcher.refresh()
    shelf.errors["v2"] = error
    publish(registry, "v2")
    for _ in range(5):
        watcher.refresh()
        clock[0] += 100
    assert served(watcher) == ("v1", 1)
    assert value(metrics, "load_failures_total") == 5
    assert "promotion 2 of v2 cannot be served, v1 is served" in watcher.problem
    assert sum("promotion 2 of v2" in message for message in caplog.messages) == 1, "logged once a promotion"
    del shelf.errors["v2"]
    watcher.refresh()
    assert served(watcher) == ("v2", 2)
    assert watcher.problem is None


def test_failed_loads_are_tried_again_less_and_less_often(watcher, registry, publish, shelf, clock):
    shelf.errors["v1"] = VersionDamaged("altered")
    publish(registry, "v1")
    tried = []
    for step in range(40_000):
        before = len(shelf.asked)
        watcher.refresh()
        if len(shelf.asked) > before:
            tried.append(step * 0.005)
        clock[0] += 0.005
    gaps = np.diff(tried)
    assert gaps[0] == pytest.approx(0.02, abs=0.006)
    assert (gaps[3:10] / gaps[2:9]).min() > 1.8
    assert gaps.max() <= module.MAX_RETRY_SECONDS + 0.01


def test_a_newer_promotion_does_not_wait_for_the_retry_of_a_broken_one(watcher, registry, publish, shelf, clock):
    shelf.errors["v1"] = VersionDamaged("altered")
    publish(registry, "v1")
    watcher.refresh()
    publish(registry, "v2")
    watcher.refresh()
    assert served(watcher) == ("v2", 2)
    assert watcher.problem is None


@pytest.mark.parametrize(
    "script",
    [
        lambda texts: Scores(("a",), np.full((len(texts), 1), np.nan, np.float32)),
        lambda texts: Scores(("a", "b"), np.ones((len(texts), 1), np.float32)),
        lambda texts: [][0],
    ],
)
def test_a_version_that_fails_its_warm_up_does_not_serve(watcher, registry, publish, shelf, script):
    publish(registry, "v1")
    watcher.refresh()
    shelf.scripts["v2"] = script
    publish(registry, "v2")
    watcher.refresh()
    assert served(watcher) == ("v1", 1)
    assert "v2" in watcher.problem


def test_a_version_that_is_another_than_promoted_does_not_serve(registry, publish, shelf, metrics):
    watcher = ChampionWatcher(registry, lambda version: shelf("v1"), interval=0.01, metrics=metrics)
    publish(registry, "v1")
    watcher.refresh()
    publish(registry, "v2")
    watcher.refresh()
    assert served(watcher) == ("v1", 1)
    assert "v2 says that it is v1" in watcher.problem


def test_at_the_start_earlier_promotions_stand_in_for_a_damaged_champion(watcher, registry, publish, shelf, clock):
    for name in ("v1", "v2", "v3", "v4"):
        publish(registry, name)
    shelf.errors.update({"v4": VersionDamaged("altered"), "v3": VersionDamaged("altered")})
    watcher.refresh()
    assert served(watcher) == ("v2", 2)
    assert shelf.asked == ["v4", "v3", "v2"]
    assert "promotion 4 of v4 cannot be served, v2 is served" in watcher.problem
    clock[0] += 100
    del shelf.errors["v4"]
    watcher.refresh()
    assert served(watcher) == ("v4", 4)
    assert watcher.problem is None


def test_what_was_rolled_back_does_not_stand_in(watcher, registry, publish, shelf):
    for name in ("v1", "v2", "v3"):
        publish(registry, name)
    registry.rollback(by="tests", reason="v3 is bad")
    shelf.errors["v2"] = VersionDamaged("altered")
    watcher.refresh()
    assert served(watcher) == ("v1", 1)
    assert shelf.asked == ["v2", "v1"]


def test_a_registry_that_cannot_be_read_changes_nothing_and_is_logged_once(
    watcher, registry, publish, metrics, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, logger=module.__name__)
    publish(registry, "v1")
    watcher.refresh()
    caplog.clear()

    def fail():
        raise RegistryError("no route to the store")

    with monkeypatch.context() as patched:
        patched.setattr(registry, "champion", fail)
        for _ in range(3):
            watcher.refresh()
    assert served(watcher) == ("v1", 1)
    assert "no route to the store" in watcher.problem
    assert value(metrics, "registry_failures_total") == 3
    assert len(caplog.messages) == 1
    watcher.refresh()
    assert watcher.problem is None


def test_the_thread_survives_whatever_happens(watcher, registry, publish, monkeypatch, until, caplog):
    asked = []

    def fail():
        asked.append(1)
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr(registry, "champion", fail)
        watcher.start()
        until(lambda: len(asked) >= 2)
    assert watcher.alive
    publish(registry, "v1")
    until(lambda: watcher.current)
    watcher.stop(5)
    assert not watcher.alive


def test_waking_looks_at_once_and_only_once(registry, publish, shelf, metrics, until, monkeypatch):
    looks = []
    look = registry.champion
    monkeypatch.setattr(registry, "champion", lambda: looks.append(1) or look())
    watcher = ChampionWatcher(registry, shelf, interval=60, metrics=metrics)
    watcher.start()
    assert watcher.wait_for_first_look(5)
    publish(registry, "v1")
    watcher.wake()
    until(lambda: watcher.current)
    time.sleep(0.05)
    assert len(looks) == 2
    watcher.stop(5)
    assert not watcher.alive


def test_series_of_versions_that_serve_no_more_go(metrics):
    for number in range(1, KEPT_VERSIONS + 3):
        metrics.swapped(f"v{number}", number)
        metrics.predicted(f"v{number}", ["a", "a", "b"])
    metrics.predicted("v1", ["a"])
    assert value(metrics, "predictions_total", version="v1", label="a") is None
    assert value(metrics, "predictions_total", version="v2", label="b") is None
    assert value(metrics, "predictions_total", version="v3", label="a") == 2
    assert value(metrics, "predictions_total", version=f"v{KEPT_VERSIONS + 2}", label="b") == 1


# ── a start without the registry ──
class Away:
    """A registry whose store is away until it is not."""

    def __init__(self, registry):
        self._registry = registry
        self.away = True

    def __getattr__(self, name):
        if self.away:
            raise RegistryUnavailable("the store is away")
        return getattr(self._registry, name)


@pytest.fixture
def remembered(tmp_path):
    return Remembered(tmp_path / "cache", "s3://bucket/models")


def test_without_the_registry_it_starts_with_what_was_served_last(
    registry, publish, shelf, metrics, remembered, caplog
):
    for name in ("v1", "v2"):
        publish(registry, name)
    ChampionWatcher(registry, shelf, interval=0.01, metrics=metrics, remembered=remembered).refresh()
    assert remembered.read() == registry.champion()
    away = Away(registry)
    watcher = ChampionWatcher(away, shelf, interval=0.01, metrics=Metrics(), remembered=remembered)
    with caplog.at_level(logging.INFO):
        for _ in range(3):
            watcher.refresh()
    assert served(watcher) == ("v2", 2)
    assert shelf.asked == ["v2", "v2"]
    assert "registry cannot be read" in watcher.problem
    assert caplog.text.count("cannot be read, and nothing is served yet") == 1
    assert caplog.text.count("version v2 of promotion 2 serves from its local copy") == 1
    publish(registry, "v3")
    away.away = False
    watcher.refresh()
    assert served(watcher) == ("v3", 3)
    assert watcher.problem is None
    assert remembered.read() == registry.champion()


def test_what_was_served_last_and_cannot_be_now_is_tried_once(registry, publish, shelf, remembered, metrics, caplog):
    publish(registry, "v1")
    remembered.write(registry.champion())
    shelf.errors["v1"] = VersionDamaged("no whole copy of it")
    away = Away(registry)
    watcher = ChampionWatcher(away, shelf, interval=0.01, metrics=metrics, remembered=remembered)
    for _ in range(3):
        watcher.refresh()
    assert watcher.current is None
    assert shelf.asked == ["v1"]
    assert "version v1, which was served last here, cannot be: no whole copy of it" in caplog.text
    assert "registry cannot be read" in watcher.problem
    assert value(metrics, "registry_reachable") == 0
    del shelf.errors["v1"]
    away.away = False
    watcher.refresh()
    assert served(watcher) == ("v1", 1)
    assert value(metrics, "registry_reachable") == 1
    assert value(metrics, "registry_read_timestamp_seconds") > time.time() - 60


def test_without_the_registry_and_a_memory_nothing_is_served(registry, shelf, metrics, remembered, caplog):
    watcher = ChampionWatcher(Away(registry), shelf, interval=0.01, metrics=metrics, remembered=remembered)
    for _ in range(2):
        watcher.refresh()
    assert watcher.current is None
    assert caplog.text.count("nothing is remembered") == 1


def test_a_swap_that_cannot_be_remembered_is_a_swap(registry, publish, shelf, metrics, remembered, tmp_path, caplog):
    (tmp_path / "cache").write_text("in the way")
    watcher = ChampionWatcher(registry, shelf, interval=0.01, metrics=metrics, remembered=remembered)
    publish(registry, "v1")
    watcher.refresh()
    assert served(watcher) == ("v1", 1)
    assert "champion.json cannot be written" in caplog.text
