"""Records that the stream does not take, whatever one tries."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path

from perdure.stream.payload import Payload
from perdure_services.serving.spool.frame import encode_frame
from perdure_services.serving.spool.segment import REFUSED, segment_path

MAX_REFUSED_BYTES = 64 * 2**20
"""Most bytes kept of them."""

_log = logging.getLogger(__name__)


class Refused:
    """Files beside the segments, framed as they are, which stay until somebody removes them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.lock = threading.Lock()
        """Held while a file is written, or rewritten."""

    def keep(self, payload: Payload, segment: int) -> bool:
        """Keeps a record of `segment`; False, with the reason in the log, where there is no room for it."""
        frame = encode_frame(payload)
        with self.lock:
            try:
                kept = sum(path.stat().st_size for path in self._folder.glob(f"*{REFUSED}"))
                if kept + len(frame) > MAX_REFUSED_BYTES:
                    _log.error("%s keeps %d bytes of refused records already: look at them", self._folder, kept)
                    return False
                with segment_path(self._folder, segment, REFUSED).open("ab") as file:
                    file.write(frame)
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as error:
                _log.error("a refused record cannot be kept in %s: %s", self._folder, error)
                return False
        return True
