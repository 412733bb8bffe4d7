"""The object store under a registry: a folder, S3, GCS, Azure or memory, with errors that a person can act on."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import LocalStore, MemoryStore, from_url

from perdure.errors import RegistryError, RegistryUnavailable

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

REMOTE_SCHEMES = ("s3", "s3a", "gs", "az", "azure", "adl", "abfs", "abfss")

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")

KNOWN = "a folder, file:///FOLDER, s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX or memory://"

log = logging.getLogger(__name__)

_FULL = "Free some space there: nothing that was finished before is lost"
_WRONG = "Give the right credentials for this store in the environment"
_EXPIRED = "The credentials have expired: give new ones in the environment, and start this process again"

_ADVICE = {
    "ExpiredToken": _EXPIRED,
    "TokenRefreshRequired": _EXPIRED,
    "InvalidAccessKeyId": _WRONG,
    "SignatureDoesNotMatch": _WRONG,
    "RequestTimeTooSkewed": "This machine's clock and the store's differ by too much: set the one that is wrong",
    "NoSuchBucket": "Make that bucket, or name another one in registry.url: Perdure makes none",
    "SlowDown": "The store wants fewer requests: try again later, or raise its limits",
    "EntityTooLarge": "The store does not take objects of that size: raise its limit",
}
"""What to do about what S3 servers call their errors."""

# Short enough that a turn, or a start of serving, says what is wrong instead of hanging: a store that says nothing is
# waited for for as long as `read_timeout`. A download that goes on may take longer.
_CLIENT: ClientConfig = {
    "connect_timeout": timedelta(seconds=5),
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(minutes=15),
}

# A store has nothing to say while it is sent something, and `read_timeout` counts that as silence.
LARGE = 1_000_000
"""Bytes from which a write has `_UPLOAD_SECONDS`, and no limit on silence."""
_UPLOAD_SECONDS = 600.0

# Who writes while another does is told so (409) before that one's object can be read, if it ever can: the other may
# fail. So it is tried again, as AWS advises, for six seconds.
_CONFLICT_PAUSES = tuple(min(1.0, 0.02 * 2**turn) for turn in range(11))

_RETRY: RetryConfig = {"max_retries": 3, "retry_timeout": timedelta(seconds=30)}


class Backend(Protocol):
    """What is used of an obstore store."""

    def put(self, path: str, file: bytes, *, mode: Any = None) -> object: ...

    def get(self, path: str) -> Any: ...

    def head(self, path: str) -> Any: ...

    def list(self, prefix: str | None = None) -> Any: ...

    def delete(self, paths: str) -> object: ...


@dataclass(frozen=True, slots=True)
class Item:
    """One stored object."""

    path: str
    size: int
    """Bytes."""
    modified: datetime


def redacted(url: str) -> str:
    """The URL without what may be secret in it: user, password, query and fragment."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    place = re.split(r"[?#]", rest, maxsplit=1)[0]
    if "@" in rest and "@" not in place:
        return f"{scheme}://..."  # A password with a ? or # in it: where it ends cannot be told.
    return f"{scheme}://{place.rpartition('@')[2]}"


class Store:
    """Reads and writes whole objects under a URL.

    Raises:
        RegistryError: the URL cannot be used.
        RegistryUnavailable: by every method: the store cannot be reached, read or written.
    """

    def __init__(self, backend: Backend, name: str, uploads: Backend | None = None) -> None:
        self._backend = backend
        self._uploads = uploads or backend
        self.name = name
        """The URL, without secrets."""
        self._folder = Path(backend.prefix) if isinstance(backend, LocalStore) and backend.prefix else None

    @classmethod
    def open(cls, url: str) -> Store:
        """The store at `url`; a local folder is made when missing."""
        scheme, separator, _ = url.partition("://")
        name = redacted(url)
        if not url.strip():
            raise RegistryError(f"the registry's URL is empty: give {KNOWN} in registry.url")
        if not separator and (likely := _SCHEME.match(url)):
            raise RegistryError(f"the registry's URL starts with {likely[0]!r} but has no '://': give {KNOWN}")
        try:
            if not separator:
                return cls(LocalStore(Path(url).absolute(), mkdir=True), name)
            if scheme == "file":
                return cls(LocalStore.from_url(url, mkdir=True), name)
            if scheme == "memory":
                return cls(MemoryStore(), name)
            if scheme in REMOTE_SCHEMES:
                options = _client_options(scheme)
                patient: ClientConfig = {
                    "read_timeout": timedelta(seconds=_UPLOAD_SECONDS),
                    "timeout": timedelta(seconds=_UPLOAD_SECONDS),
                }
                return cls(
                    from_url(url, client_options=options, retry_config=_RETRY),
                    name,
                    from_url(url, client_options={**options, **patient}, retry_config=_RETRY),
                )
        except OSError as error:
            raise RegistryError(
                f"the registry {name} cannot be made: {_reason(error)}. Make the folder writable for this user, or "
                "give another one in registry.url"
            ) from None
        except (BaseError, ValueError) as error:
            # Its own message and its context may show the whole URL, so neither goes along.
            raise RegistryError(
                f"the registry {name} cannot be opened: {_reason(error)}. Check registry.url and the environment's "
                "settings for that store (account, region, credentials)"
            ) from None
        raise RegistryError(f"the registry's URL {name} is of no known kind: give {KNOWN} in registry.url")

    def put(self, path: str, data: bytes) -> None:
        """Writes `data` to `path`, over what is there."""
        with self._explained(f"writing {path}"):
            self._for(data).put(path, data)
            self._sync(path)

    def create(self, path: str, data: bytes) -> bool:
        """Writes `data` to `path` if nothing is there, and says whether it did; readers see all of it or nothing.

        A remote store may write, and its answer be lost: then what is sent again finds itself, or there is only an
        error. So what stands there decides: who finds exactly `data` has written it. Where it matters who was first,
        `data` must have something of its own, a time or an owner.
        """
        with self._explained(f"writing {path}"):
            for pause in (0.0, *_CONFLICT_PAUSES):
                time.sleep(pause)
                ours = self._try_to_create(path, data)
                if ours:
                    self._sync(path)
                if ours is not None:
                    return ours
        raise RegistryUnavailable(
            f"the registry {self.name} failed at writing {path}: for {sum(_CONFLICT_PAUSES):.0f} s it has said that "
            "another process is writing that, and nothing has come of it. Try again"
        )

    def get(self, path: str) -> bytes | None:
        """What is at `path`; None when nothing is."""
        with self._explained(f"reading {path}"):
            try:
                return bytes(self._backend.get(path).bytes())
            except FileNotFoundError:
                return None

    def size(self, path: str) -> int | None:
        """Bytes at `path`; None when nothing is there."""
        with self._explained(f"looking for {path}"):
            try:
                return int(self._backend.head(path)["size"])
            except FileNotFoundError:
                return None

    def items(self, prefix: str) -> Iterator[Item]:
        """Everything under the folder `prefix`, in no order."""
        with self._explained(f"listing {prefix}"):
            for batch in self._backend.list(prefix):
                for found in batch:
                    yield Item(found["path"], found["size"], found["last_modified"])

    def delete(self, path: str) -> None:
        """Removes `path`; it may be gone already."""
        with self._explained(f"deleting {path}"):
            try:
                self._backend.delete(path)
            except FileNotFoundError:
                return

    def delete_folder(self, prefix: str) -> None:
        """Removes everything under the folder `prefix`."""
        for item in tuple(self.items(prefix)):
            self.delete(item.path)
        if self._folder is not None:
            with self._explained(f"deleting {prefix}"):
                _remove_tree(self._folder / prefix)

    def _try_to_create(self, path: str, data: bytes) -> bool | None:
        """As `create`; None when another one is writing, whose object cannot be read yet."""
        try:
            self._for(data).put(path, data, mode="create")
        except AlreadyExistsError:
            try:
                return self._holds(path, data)
            except FileNotFoundError:
                return None
        except (BaseError, OSError):
            if not self._seems_to_hold(path, data):
                raise
            log.info("%s was written to %s, though the answer was an error", path, self.name)
        return True

    def _for(self, data: bytes) -> Backend:
        return self._uploads if len(data) >= LARGE else self._backend

    def _holds(self, path: str, data: bytes) -> bool:
        return bytes(self._backend.get(path).bytes()) == data

    def _seems_to_hold(self, path: str, data: bytes) -> bool:
        try:
            return self._holds(path, data)
        except (BaseError, OSError) as error:
            log.debug("what stands at %s in %s is not known: %s", path, self.name, _reason(error))
            return False

    def _sync(self, path: str) -> None:
        # obstore renames or links a whole file into place, but leaves it to the system when it reaches the disk.
        if self._folder is None:
            return
        file = self._folder / path
        for target in (file, *(parent for parent in file.parents if parent.is_relative_to(self._folder))):
            descriptor = os.open(target, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    @contextmanager
    def _explained(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            raise RegistryUnavailable(
                f"the registry {self.name} failed at {doing}: {_reason(error)}. {_advice(error)}"
            ) from None


def _client_options(scheme: str) -> ClientConfig:
    """Options of the HTTP client, with those of the environment, which obstore leaves out where any are given."""
    options: ClientConfig = {**_CLIENT}
    if scheme not in ("s3", "s3a"):
        return options
    endpoint = os.environ.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT", "")
    # Whoever names an endpoint without TLS has said so.
    if endpoint.startswith("http://"):
        options["allow_http"] = True
    if authorities := os.environ.get("AWS_CA_BUNDLE"):
        try:
            options["root_certificate"] = Path(authorities).read_bytes()
        except OSError as error:
            raise RegistryError(
                f"AWS_CA_BUNDLE names {authorities}, which cannot be read: {error.strerror or error}. Give the file "
                "with the certificates that vouch for the store, or leave it out"
            ) from error
    return options


def _reason(error: Exception) -> str:
    """The first line of what a store says, and its code, without secrets; the rest may show any."""
    first = str(error).strip().partition("\n")[0]
    first = re.sub(r":? *<\?xml.*", "", first)
    if (code := _code(error)) and code not in first:
        first = f"{first}: {code}"
    return re.sub(r"[\w+.-]+://[^\s\"'`()<>,]+", lambda found: redacted(found[0]), first) or type(error).__name__


def _code(error: Exception) -> str | None:
    """What an S3 server calls the error."""
    found = re.search(r"<Code>(\w+)</Code>", str(error))
    return found[1] if found else None


def _advice(error: Exception) -> str:
    code = _code(error)
    if code in _ADVICE:
        return _ADVICE[code]
    text = str(error).lower()
    if "no space left" in text or "quota" in text or "storagefull" in text or "507 " in text:
        return _FULL
    if "read-only" in text:
        return "It is read-only: mount it writable, or give another place in registry.url"
    if isinstance(error, UnauthenticatedError) or "credential" in text:
        return "Give credentials for this store in the environment"
    if isinstance(error, (PermissionDeniedError, PermissionError)) or "permission denied" in text:
        return "Give this user, or these credentials, the right to read, write, list and delete there"
    return "Check that the store can be reached and that registry.url names the right place, then try again"


def _remove_tree(folder: Path) -> None:
    # What a killed writer left half-written is not listed by the store, and would stay for ever.
    if not folder.is_dir():
        return
    for inside in folder.iterdir():
        if inside.is_dir() and not inside.is_symlink():
            _remove_tree(inside)
        else:
            inside.unlink(missing_ok=True)
    folder.rmdir()
