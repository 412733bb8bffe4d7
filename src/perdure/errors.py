"""Every error that Perdure raises on purpose.

PerdureError
├── UsageError (also ValueError)      what a user gave cannot be used; the message says what to change
│   ├── SettingError                  a setting is unknown or out of range
│   ├── TooFewLabels                  there is nothing to tell apart yet
│   ├── ExtraMissing                  packages are needed that only an extra brings; says which
│   ├── DataError                     a row of a data file cannot be used; carries file and line
│   └── ModelNotFound                 an encoder that is neither a folder, nor packaged, nor in the local cache
├── RecordError (also ValueError)     a record cannot be read: it goes to quarantine with this reason
├── StreamError                       the stream cannot be reached or written
├── TrainingDiverged                  an update's loss is not a number any more; the champion stays
├── StoreFull                         the disk is full, or cannot be written; what was committed before is whole
│   └── SpoolFull                     the spool holds as much as it may, because the stream does not take it
├── StoreBusy                         another process holds the store that only one may write
├── StoreCorrupt                      what was read back is not what was written
├── ApiError                          the API did not do what a client asked
│   ├── ApiUnreachable                no connection, or none that lasted until an answer was there
│   ├── ApiTimeout (also TimeoutError)  it was sent, and no answer came in time
│   ├── ApiOutcomeUnknown             it was sent, may have been done, and must not be sent twice
│   ├── ApiAnswerUnreadable           what answers there is not this API, or another version of it
│   └── ApiRefused                    an answer that says no; carries status, title, detail, value, do, retry_after
│       ├── ApiKeyRefused             401, 403: no API key, a wrong one, or one that may not do this
│       ├── ApiNotFound               404: no such version, or not this API's URL
│       ├── ApiConflict               409: somebody else was faster, or there is nothing to do it to
│       ├── ApiRequestInvalid (also ValueError)  400, 413, 415, 422: the request cannot be used
│       └── ApiBusy                   429, 502, 503, 504: not now; perhaps later
└── RegistryError                     the registry cannot be read or written
    ├── RegistryUnavailable           its store cannot be reached, read or written now
    ├── VersionNotFound               no such version
    ├── VersionDamaged                a file of a version is missing or altered; it must not be served
    ├── LeaseLost                     another trainer has taken the lease over
    ├── StaleShard                    somebody else has taken the partition over
    └── StalePromotion                somebody else promoted since this promoter read its champion

A message says what happened, the value received, and what to do.
"""

from __future__ import annotations


class PerdureError(Exception):
    """Base of all errors raised on purpose."""


class UsageError(PerdureError, ValueError):
    """What a user gave cannot be used."""


class SettingError(UsageError):
    """A setting is unknown or out of range."""


class TooFewLabels(UsageError):
    """Fewer than two labels have examples enough: there is nothing to tell apart yet."""


class TrainingDiverged(PerdureError):
    """The loss of an update is not a number any more: nothing can be made of what it trained."""


class ExtraMissing(UsageError):
    """Packages are needed that the base install does not bring.

    Args:
        what: needs them; begins the sentence.
        package: one of them.
    """

    def __init__(self, what: str, package: str) -> None:
        self.package = package
        super().__init__(f"{what} needs {package}, which is not installed: install perdure[cpu] or perdure[gpu]")


class DataError(UsageError):
    """A row of a data file cannot be used."""

    def __init__(self, file: str, line: int, reason: str) -> None:
        self.file = file
        self.line = line
        super().__init__(f"{file}, line {line}: {reason}")


class ModelNotFound(UsageError):
    """An encoder that is neither a folder, nor packaged, nor in the local cache."""


class ExportError(UsageError):
    """An encoder that cannot be made into a graph."""


class RecordError(PerdureError, ValueError):
    """A record cannot be read."""


class StreamError(PerdureError):
    """The stream cannot be reached or written."""


class StoreBusy(PerdureError):
    """Another process holds the store that only one may write."""


class StoreFull(PerdureError):
    """The disk is full, or cannot be written."""


class SpoolFull(StoreFull):
    """The spool holds as much as it may."""


class StoreCorrupt(PerdureError):
    """What was read back is not what was written."""


class RegistryError(PerdureError):
    """The registry cannot be read or written."""


class RegistryUnavailable(RegistryError):
    """The store of the registry cannot be reached, read or written now."""


class VersionNotFound(RegistryError):
    """No version of that name."""


class VersionDamaged(RegistryError):
    """A file of a version is missing or altered."""


class LeaseLost(RegistryError):
    """The trainer's term is over: another trainer has taken the lease."""


class StaleShard(RegistryError):
    """Somebody else has taken the partition over."""


class StalePromotion(RegistryError):
    """Somebody else promoted since this promoter read its champion."""


class ApiError(PerdureError):
    """The API did not do what a client asked."""


class ApiUnreachable(ApiError):
    """No connection, or none that lasted until an answer was there."""


class ApiTimeout(ApiError, TimeoutError):
    """It was sent, and no answer came in time."""


class ApiOutcomeUnknown(ApiError):
    """It was sent, may have been done, and must not be sent twice."""


class ApiAnswerUnreadable(ApiError):
    """What answers there is not this API, or another version of it."""


class ApiRefused(ApiError):
    """An answer that says no.

    Args:
        message: for people, all of it.
        status: HTTP status.
        title: what kind of refusal, in a few words.
        detail: what happened.
        value: what was refused, as far as the API says; None where it does not.
        do: what to do about it.
        retry_after: seconds after which the API wants to be asked again; None where it does not say.
        request_id: by which the API's log tells of it; None where no API answered.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        title: str,
        detail: str,
        value: object = None,
        do: str = "",
        retry_after: float | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.title = title
        self.detail = detail
        self.value = value
        self.do = do
        self.retry_after = retry_after
        self.request_id = request_id


class ApiKeyRefused(ApiRefused):
    """No API key, a wrong one, or one that may not do this."""


class ApiNotFound(ApiRefused):
    """No such version, or not this API's URL."""


class ApiConflict(ApiRefused):
    """Somebody else was faster, or there is nothing to do it to."""


class ApiRequestInvalid(ApiRefused, ValueError):
    """The request cannot be used."""


class ApiBusy(ApiRefused):
    """Not now; perhaps later."""
