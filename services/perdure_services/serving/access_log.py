"""One line a request, where it is asked for."""

from __future__ import annotations

import logging

from perdure.logs import FIELDS

_log = logging.getLogger(__name__)


def log_request(method: str, route: str, status: int, seconds: float, key: str | None) -> None:
    """Logs that a request was answered.

    The route's template stands for the path, which may name a person (`DELETE /v1/subjects/{subject}`); no address of
    a client and no agent is logged either. `key` is the name of the API key, never the key.
    """
    fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 6)}
    if key is not None:
        fields["key"] = key
    _log.info("%s %s %d in %.1f ms", method, route, status, seconds * 1000, extra={FIELDS: fields})


def log_call(method: str, code: str, seconds: float, key: str | None) -> None:
    """Logs that a call over gRPC ended with the status `code`; `method` is one of ours, or `other`."""
    fields = {"rpc": method, "code": code, "seconds": round(seconds, 6)}
    if key is not None:
        fields["key"] = key
    _log.info("gRPC %s %s in %.1f ms", method, code, seconds * 1000, extra={FIELDS: fields})
