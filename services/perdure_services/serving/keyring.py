"""The keys that a serving process knows: it follows their file while it runs."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge

from perdure.errors import SettingError
from perdure_services.keys import Key, digest, read_keys
from perdure_services.keys.key import KEY
from perdure_services.serving.shared_bucket import SharedBucket, SharedBuckets
from perdure_services.serving.token_bucket import Bucket, TokenBucket

LOOK_SECONDS = 1.0
"""How often the file is looked at, at most."""

_ID = slice(8, 20)
"""Where the id stands in a key."""

_NOBODY = bytes(32)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HeldKey:
    """A key in the form that a request needs it in."""

    name: str
    scopes: frozenset[str]
    digest: bytes
    expires: float
    """Seconds since the epoch; infinite for never."""
    bucket: Bucket | None

    @property
    def expired(self) -> bool:
        """Whether its time is over."""
        return time.time() >= self.expires


class Keyring:
    """The keys of `file`, which is looked at again when it changes, at most once a second.

    A file that cannot be used while this runs leaves the keys that were known: an outage must not come of half a
    copy, and a key is revoked by a file without it, not by no file. The log says so once, and the gauge
    `perdure_keys_file_failing` is 1 until it is well again.

    For one thread.

    Raises:
        SettingError: the file cannot be used at the start.
    """

    def __init__(self, file: Path, registry: CollectorRegistry, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._held: dict[bytes, HeldKey] = {}
        self._shared: SharedBuckets | None = None
        self._count = Gauge("perdure_keys", "API keys that are known.", registry=registry)
        self._failing = Gauge(
            "perdure_keys_file_failing",
            "1 while the file of API keys cannot be used, and the keys known before go on.",
            registry=registry,
        )
        # Before it is read: what is written meanwhile is read at the next look.
        self._seen = self._signature()
        self._hold(read_keys(file))
        self._next = clock() + LOOK_SECONDS

    def now(self) -> float:
        """The time of the buckets, in seconds."""
        return self._clock()

    def share(self, file: Path) -> None:
        """From now on the rates of keys are those of all processes that share `file`.

        Raises:
            OSError: the file cannot be made.
            SettingError: the file of keys cannot be used.
        """
        self._shared = SharedBuckets(file)
        self._hold(read_keys(self._file))

    def find(self, text: bytes) -> HeldKey | None:
        """The key that `text` is; None for any that is not known."""
        now = self._clock()
        if now >= self._next:
            self._next = now + LOOK_SECONDS
            self._look()
        # The hash of whatever a client sends must not cost more than that of a key.
        if KEY.fullmatch(text) is None:
            return None
        held = self._held.get(text[_ID])
        same = hmac.compare_digest(digest(text), held.digest if held is not None else _NOBODY)
        return held if same else None

    def _look(self) -> None:
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            keys = read_keys(self._file)
        except SettingError as error:
            self._failing.set(1)
            _log.error("the API keys known so far go on: %s", error)
            return
        self._hold(keys)
        _log.info("%s now holds %d API keys", self._file, len(keys))

    def _hold(self, keys: tuple[Key, ...]) -> None:
        before = self._held
        self._held = {}
        for key in keys:
            id = key.id.encode("ascii")
            held = before.get(id)
            self._held[id] = HeldKey(
                name=key.name,
                scopes=frozenset(key.scopes),
                digest=bytes.fromhex(key.sha256),
                expires=key.expires.timestamp() if key.expires is not None else float("inf"),
                bucket=self._bucket(key, held.bucket if held is not None else None),
            )
        self._count.set(len(keys))
        self._failing.set(0)

    def _bucket(self, key: Key, before: Bucket | None) -> Bucket | None:
        if key.rate is None:
            return None
        burst = float(key.burst if key.burst is not None else max(key.rate, 1.0))
        if self._shared is not None:
            return SharedBucket(self._shared, key.id.encode("ascii"), key.rate, burst)
        # A change to another key must not fill this one's bucket.
        if before is not None and (before.rate, before.burst) == (key.rate, burst):
            return before
        return TokenBucket(key.rate, burst, self._clock())

    def _signature(self) -> object:
        try:
            found = self._file.stat()
        except OSError as error:
            return error.errno
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
