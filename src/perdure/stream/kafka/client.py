"""What every client of the broker is told, and what its errors mean."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kafka import errors

from perdure.config import StreamSettings
from perdure.errors import SettingError, StreamError

RECONNECT_MS = 2000
"""Longest pause before a broker that is away is tried again; the library's 30 s would be noticed."""

METADATA_MS = 30_000
"""Age at which the list of partitions is asked for anew, so that added ones are found."""

_SERVER = re.compile(r"^[^\s:/,]+:\d{1,5}$|^\[[0-9A-Fa-f:]+\]:\d{1,5}$")

_ADVICE: tuple[tuple[type[Exception], str], ...] = (
    (
        errors.SaslAuthenticationFailedError,
        "the broker does not accept who this client says it is: check stream.sasl_mechanism, stream.sasl_username "
        "and the file stream.sasl_password_file",
    ),
    (errors.UnsupportedSaslMechanismError, "the broker does not know stream.sasl_mechanism: use one that it offers"),
    (errors.AuthorizationError, "the broker does not allow it: give this client's user the right to do it"),
    (
        errors.UnknownTopicOrPartitionError,
        "the topic is not there: make it, set stream.create_topic to true, or correct stream.topic",
    ),
    (errors.InvalidReplicationFactorError, "there are not that many brokers: lower stream.replication"),
    (
        errors.PolicyViolationError,
        "the broker's policy does not allow it: make the topic by hand, and set stream.create_topic to false",
    ),
    (errors.KafkaConfigurationError, "the client cannot use these settings: look at the section stream"),
    (errors.NotEnoughReplicasError, "too few copies of the partition are in step: look at the brokers"),
)
_AWAY = (
    "the broker cannot be reached, or does not answer this client: start it, or correct stream.url, stream.security "
    "and the stream.sasl_… and stream.tls_… that go with it"
)


def servers_of(location: str) -> tuple[str, ...]:
    """The brokers in `//HOST:PORT,HOST:PORT`.

    Raises:
        SettingError: it does not look like that.
    """
    found = tuple(location.removeprefix("//").rstrip("/").split(","))
    if not location.startswith("//") or not all(_SERVER.match(server) for server in found):
        # A URL may carry a password where none belongs, so it is not shown.
        raise SettingError(
            "stream.url does not name brokers: write kafka://HOST:PORT, or several as kafka://HOST:PORT,HOST:PORT; "
            "a user and a password have settings of their own (stream.sasl_username, stream.sasl_password_file)"
        )
    return found


def options(servers: tuple[str, ...], settings: StreamSettings) -> dict[str, Any]:
    """What all clients are made with.

    Raises:
        SettingError: a file that the settings name cannot be read.
    """
    milliseconds = int(settings.delivery_seconds * 1000)
    chosen: dict[str, Any] = {
        "bootstrap_servers": list(servers),
        "client_id": "perdure",
        "security_protocol": settings.security,
        "reconnect_backoff_max_ms": RECONNECT_MS,
        "metadata_max_age_ms": METADATA_MS,
        "bootstrap_timeout_ms": milliseconds,
    }
    if settings.security.startswith("SASL"):
        chosen |= {
            "sasl_mechanism": settings.sasl_mechanism,
            "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": _password(settings.sasl_password_file),
        }
    if settings.security.endswith("SSL"):
        for setting in ("tls_ca_file", "tls_cert_file", "tls_key_file"):
            name = getattr(settings, setting)
            if name and not Path(name).is_file():
                raise SettingError(f"stream.{setting} is {name!r}, which is no file: give the path of a PEM file")
        chosen |= {
            "ssl_check_hostname": settings.tls_check_hostname,
            "ssl_cafile": settings.tls_ca_file or None,
            "ssl_certfile": settings.tls_cert_file or None,
            "ssl_keyfile": settings.tls_key_file or None,
        }
    return chosen


def _password(file: str) -> str:
    if not file:
        raise SettingError(
            "stream.security asks for a password, but stream.sasl_password_file names no file: write the password "
            "into a file that only this user can read, and give its path"
        )
    try:
        return Path(file).read_text(encoding="utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"stream.sasl_password_file is {file!r}, which cannot be read: {error}") from error


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns the library's errors into a StreamError that says `what` failed, why, and what to do."""
    try:
        yield
    except (errors.KafkaError, OSError) as error:
        raise StreamError(f"{what}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why a client failed, and what to do, in words of this project."""
    advice = next((advice for kind, advice in _ADVICE if isinstance(error, kind)), _AWAY)
    detail = str(error).removeprefix(f"{type(error).__name__}: ")
    return f"{advice} ({type(error).__name__}{f': {detail}' if detail else ''})"


def discard(close: Callable[[], object]) -> None:
    """Closes a client that may hang, without waiting for it."""

    def run() -> None:
        try:
            close()
        except Exception:  # noqa: BLE001 (it is given up because it is broken)
            return

    threading.Thread(target=run, name="perdure-kafka-discard", daemon=True).start()
