"""Every error that Perdure raises on purpose.

PerdureError
├── UsageError (also ValueError)      what a user gave cannot be used; the message says what to change
│   ├── SettingError                  a setting is unknown or out of range
│   ├── TooFewLabels                  there is nothing to tell apart yet
│   ├── DataError                     a row of a data file cannot be used; carries file and line
│   └── ModelNotFound                 an encoder that is neither a folder, nor packaged, nor in the local cache
├── RecordError (also ValueError)     a record cannot be read: it goes to quarantine with this reason
├── StreamError                       the stream cannot be reached or written
├── StoreFull                         the disk is full, or cannot be written; what was committed before is whole
│   └── SpoolFull                     the spool holds as much as it may, because the stream does not take it
├── StoreBusy                         another process holds the store that only one may write
├── StoreCorrupt                      what was read back is not what was written
└── RegistryError                     the registry cannot be read or written
    ├── VersionNotFound               no such version
    ├── VersionDamaged                a file of a version is missing or altered; it must not be served
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


class DataError(UsageError):
    """A row of a data file cannot be used."""

    def __init__(self, file: str, line: int, reason: str) -> None:
        self.file = file
        self.line = line
        super().__init__(f"{file}, line {line}: {reason}")


class ModelNotFound(UsageError):
    """An encoder that is neither a folder, nor packaged, nor in the local cache."""


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


class VersionNotFound(RegistryError):
    """No version of that name."""


class VersionDamaged(RegistryError):
    """A file of a version is missing or altered."""


class StaleShard(RegistryError):
    """Somebody else has taken the partition over."""


class StalePromotion(RegistryError):
    """Somebody else promoted since this promoter read its champion."""
