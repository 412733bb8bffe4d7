"""Which version answers: follows the promotion log and swaps without dropping a request."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from perdure.errors import PerdureError, RegistryError, VersionDamaged
from perdure.model.base import Classifier
from perdure.records import now
from perdure.registry import Promotion, Registry, Remembered
from perdure_services.serving.metrics import Metrics

MAX_RETRY_SECONDS = 60.0
"""A version that cannot be loaded is tried again at least this often."""

FALLBACKS = 20
"""Promotions looked back at, when the newest version cannot be loaded at the start."""

WARM_UP = ("where is my order", "a second text, longer than the first, so that the warm-up is a batch with padding")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Champion:
    """A loaded version and the promotion that put it there."""

    classifier: Classifier
    promotion: Promotion
    since: float
    """When it began to serve, seconds since the epoch."""

    @property
    def version(self) -> str:
        return self.promotion.version


@dataclass(frozen=True, slots=True)
class _Failure:
    number: int
    tries: int
    retry_at: float


class ChampionWatcher:
    """Looks for new promotions in a thread of its own, loads and warms up what they name, then swaps one reference.

    Until then, and whenever a version cannot be loaded, the old champion goes on serving. When nothing is served yet
    and the newest version cannot be loaded, the versions of earlier promotions are tried, newest first, without those
    that were rolled back; the newest is tried again all the while. When nothing is served yet and the registry cannot
    be read, what is `remembered` is tried once, from its local copy.
    """

    def __init__(
        self,
        registry: Registry,
        load: Callable[[str], Classifier],
        *,
        interval: float,
        metrics: Metrics,
        remembered: Remembered | None = None,
    ) -> None:
        self._registry = registry
        self._load = load
        self._interval = interval
        self._metrics = metrics
        self._remembered = remembered
        self._recalled = False
        self._current: Champion | None = None
        self._failure: _Failure | None = None
        self._problem: str | None = None
        self._registry_problem: str | None = None
        self._wake = threading.Event()
        self._looked = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="perdure-champion", daemon=True)

    @property
    def current(self) -> Champion | None:
        """What answers now; None before the first version is loaded."""
        return self._current

    @property
    def problem(self) -> str | None:
        """Why what is served may not be the champion; None when all is well."""
        return self._problem or self._registry_problem

    @property
    def alive(self) -> bool:
        """Whether the thread that looks for promotions is running."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def wake(self) -> None:
        """Looks now rather than after the interval."""
        self._wake.set()

    def wait_for_first_look(self, timeout: float) -> bool:
        """Whether the registry was looked at, and what it named was loaded or failed to, within `timeout` seconds."""
        return self._looked.wait(timeout)

    def stop(self, timeout: float) -> None:
        """Stops looking; a load that is under way is waited for, for up to `timeout` seconds."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def refresh(self) -> None:
        """One look at the registry, and the swap that it calls for."""
        try:
            newest = self._registry.champion()
            self._follow(newest)
        except (PerdureError, OSError) as error:
            self._metrics.registry_failures.inc()
            if self._registry_problem is None:
                stays = "what is served stays" if self._current else "and nothing is served yet"
                _log.error("the registry cannot be read, %s: %s", stays, error)
            self._registry_problem = f"the registry cannot be read: {error}"
            self._metrics.registry_reachable.set(0)
            if self._current is None:
                self._recall()
            return
        self._metrics.registry_reachable.set(1)
        self._metrics.registry_read.set(now())
        if self._registry_problem is not None:
            _log.info("the registry can be read again")
            self._registry_problem = None

    def _run(self) -> None:
        while not self._stopping:
            try:
                self.refresh()
            except Exception:  # noqa: BLE001
                # A dead watcher would serve an old version for ever, and nobody would notice.
                _log.exception("looking for a new champion failed")
            self._looked.set()
            self._wake.wait(self._interval)
            self._wake.clear()

    def _follow(self, newest: Promotion | None) -> None:
        current = self._current
        if newest is None or (current is not None and current.promotion.number == newest.number):
            return
        if current is not None and current.version == newest.version:
            self._swap(replace(current, promotion=newest))
            return
        failure = self._failure if self._failure and self._failure.number == newest.number else None
        if failure and time.monotonic() < failure.retry_at:
            return
        problem = self._try(newest, quiet=failure is not None)
        if problem is None:
            return
        tries = failure.tries + 1 if failure else 1
        delay = min(self._interval * 2.0 ** min(tries, 30), MAX_RETRY_SECONDS)
        self._failure = _Failure(newest.number, tries, time.monotonic() + delay)
        if self._current is None:
            self._fall_back(newest, quiet=failure is not None)
        served = f"{self._current.version} is served" if self._current else "nothing is served"
        self._problem = f"promotion {newest.number} of {newest.version} cannot be served, {served}: {problem}"
        if failure is None:
            _log.error("%s", self._problem)

    def _fall_back(self, newest: Promotion, *, quiet: bool) -> None:
        tried = {newest.version, *self._registry.rolled_back()}
        for promotion in reversed(self._registry.promotions(limit=FALLBACKS)):
            if promotion.version in tried:
                continue
            tried.add(promotion.version)
            if self._try(promotion, quiet=quiet) is None:
                return

    def _recall(self) -> None:
        """Goes on with what was served last on this machine."""
        if self._recalled or self._remembered is None:
            return
        self._recalled = True
        promotion = self._remembered.read()
        if promotion is None:
            _log.error("nothing is remembered of what was served last here, so nothing is served until then")
            return
        problem = self._try(promotion, quiet=False)
        if problem is None:
            _log.warning(
                "version %s of promotion %d serves from its local copy: whether it is the champion still will be "
                "known when the registry can be read",
                promotion.version,
                promotion.number,
            )
        else:
            _log.error("version %s, which was served last here, cannot be: %s", promotion.version, problem)

    def _try(self, promotion: Promotion, *, quiet: bool) -> str | None:
        """Why the promoted version cannot be served; None when it is served from now on."""
        try:
            classifier = self._load(promotion.version)
            _warm_up(classifier, promotion.version)
        except (PerdureError, OSError) as error:
            self._metrics.load_failures.inc()
            return str(error)
        except Exception as error:  # noqa: BLE001
            # Whatever a broken version raises, the old one goes on serving.
            self._metrics.load_failures.inc()
            if not quiet:
                _log.exception("loading version %s failed", promotion.version)
            return f"{type(error).__name__}: {error}"
        self._swap(Champion(classifier, promotion, now()))
        return None

    def _swap(self, champion: Champion) -> None:
        before = self._current
        self._current = champion
        self._failure = None
        self._problem = None
        self._metrics.swapped(champion.version, champion.promotion.number)
        self._remember(champion.promotion)
        if before is None or before.version != champion.version:
            self._metrics.swaps.inc()
            _log.info("version %s serves since promotion %d", champion.version, champion.promotion.number)

    def _remember(self, promotion: Promotion) -> None:
        if self._remembered is None or self._remembered.read() == promotion:
            return
        try:
            self._remembered.write(promotion)
        except RegistryError as error:
            _log.warning("%s", error)


def _warm_up(classifier: Classifier, version: str) -> None:
    if classifier.version != version:
        raise VersionDamaged(f"version {version} says that it is {classifier.version}: write it again")
    scores = classifier.scores(WARM_UP)
    shape = (len(WARM_UP), len(scores.labels))
    if scores.probabilities.shape != shape or not np.isfinite(scores.probabilities).all():
        raise VersionDamaged(f"version {version} does not answer with finite probabilities: promote another one")
