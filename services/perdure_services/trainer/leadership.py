"""Whether this process is the trainer that works, where several are started on one registry."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable

from perdure.config import Settings
from perdure.errors import LeaseLost, PerdureError
from perdure.registry import Lease

LOOKS = 3
"""Looks at the lease in the time that it runs: one may fail, and the next is soon enough."""

STOP_SECONDS = 2.0
"""How long letting go may take when the process stops; after that others wait until the lease has run out."""

STUCK_SECONDS = 300.0
"""A look at the lease that takes longer hangs: the store's client gives up much earlier."""

_log = logging.getLogger(__name__)


class Leadership:
    """Keeps the lease, or waits for it, in a thread.

    Args:
        settings: of everything; with `trainer.lease_seconds` of 0 this process always leads.
        lost: called with a sentence, in that thread, when the lease was this process's and another has taken it.

    Raises:
        RegistryError: the registry's URL cannot be used.
    """

    def __init__(self, settings: Settings, lost: Callable[[str], None]) -> None:
        seconds = settings.trainer.lease_seconds
        # A pod that starts anew has the same name and process id as the one before.
        holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        self._lease = Lease(settings.registry.url, holder=holder, seconds=seconds) if seconds else None
        self._seconds = seconds
        self._lost = lost
        self._stop = threading.Event()
        self._looked = threading.Condition()
        self._looks = 0
        self._ended = time.monotonic()
        self._problem = ""
        self._waiting_for = ""
        self._thread = threading.Thread(target=self._run, name="perdure-lease", daemon=True)

    @property
    def leads(self) -> bool:
        """Whether turns may be begun."""
        return self._lease is None or self._lease.held

    @property
    def term(self) -> int:
        """The term under which a turn is run; 0 without a lease."""
        return self._lease.term if self._lease else 0

    def start(self) -> None:
        """Begins to campaign."""
        if self._lease is not None:
            self._thread.start()

    def stop(self) -> None:
        """Lets go of the lease, within about two seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def settle(self) -> bool:
        """Waits until this process leads, or another is seen to do so; whether this one does."""
        if self._lease is None:
            return True
        with self._looked:
            self._looked.wait_for(lambda: self.leads or self._other_alive or self._stop.is_set())
        return self.leads

    @property
    def holder(self) -> str:
        """The other trainer, where one was seen."""
        return self._lease.seen.holder if self._lease else ""

    def problem(self) -> str:
        """Why only a restart helps; empty while all is well."""
        if self._lease is None or self._stop.is_set() or self._thread.ident is None:
            return ""
        if not self._thread.is_alive():
            return "the thread that keeps the lease has ended"
        silent = time.monotonic() - self._ended
        if silent > STUCK_SECONDS + self._seconds:
            return f"the lease was last looked at {silent:.0f} s ago"
        return ""

    @property
    def _other_alive(self) -> bool:
        return self._lease is not None and self._lease.others_alive

    def _run(self) -> None:
        assert self._lease is not None
        while not self._stop.is_set():
            self._look(self._lease)
            self._ended = time.monotonic()
            with self._looked:
                self._looked.notify_all()
            self._stop.wait(self._seconds / LOOKS)
        with self._looked:
            self._looked.notify_all()
        try:
            self._lease.release()
        except PerdureError as error:
            _log.warning("the lease was not let go of, others wait until it has run out: %s", error)

    def _look(self, lease: Lease) -> None:
        led = lease.term
        try:
            lease.tend()
        except LeaseLost as error:
            _log.warning("this trainer does not lead any more: %s", error)
            self._lost(str(error))
            return
        except PerdureError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                _log.error("the lease cannot be looked at now, it is tried again: %s", error)
            return
        if self._problem:
            self._problem = ""
            _log.info("the lease can be looked at again")
        if lease.term and lease.term != led:
            self._waiting_for = ""
            _log.info("this trainer leads, in term %d", lease.term)
        elif not lease.term and lease.seen.holder != self._waiting_for:
            self._waiting_for = lease.seen.holder
            _log.info(
                "%s leads, in term %d: this trainer waits, and takes over when nothing is heard of that one for %g s",
                lease.seen.holder,
                lease.seen.term,
                lease.seen.seconds,
            )
