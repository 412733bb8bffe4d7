"""Snapshots of shards: what is known of one partition, handed from one ingester to the next.

    shards/TOPIC/PARTITION/log/00000017.json     what the snapshot holds, written create-if-absent
    shards/TOPIC/PARTITION/files/SHA256          its files, named by their content

The last number in a partition's log is its snapshot. Who takes a partition over first writes the next number with the
same content: from then on its former owner's writes fail.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from perdure.errors import RegistryError, StaleShard, StoreCorrupt
from perdure.records import now
from perdure.registry.store import Store

GRACE_SECONDS = 600.0
"""Age from which a file that no entry names is removed: a younger one may be about to be named."""

KEPT = 5
"""Snapshots of a partition that stay, so that who began to fetch one can end."""

_ENTRY = re.compile(r"/(\d{8})\.json$")
_PARTITION = re.compile(r"^(\d+)/log/\d{8}\.json$")


class Snapshot(BaseModel):
    """One entry of a partition's log."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    partition: int
    number: int
    owner: str
    at: float
    """Seconds since the epoch."""
    offset: dict[str, int] = {}
    files: dict[str, str] = {}
    """SHA-256 of each file, by its path inside the shard's folder; none before anything was read."""


class Shards:
    """The snapshots of one topic's partitions, in the registry's store.

    Args:
        url: of the registry.
        topic: whose partitions these are.

    Raises:
        RegistryError: the store cannot be reached, read or written.
    """

    def __init__(self, url: str, topic: str) -> None:
        self._store = Store.open(url)
        self._prefix = f"shards/{topic}"
        self._seen: dict[int, int] = {}
        """The last number of each partition when it was last looked for."""

    def partitions(self) -> tuple[int, ...]:
        """Partitions that somebody has ever owned."""
        names = (item.path.removeprefix(f"{self._prefix}/") for item in self._store.items(self._prefix))
        return tuple(sorted({int(found[1]) for name in names if (found := _PARTITION.match(name))}))

    def newest(self, partition: int) -> Snapshot | None:
        """The partition's snapshot; None before anybody owned it.

        Raises:
            StoreCorrupt: its entry cannot be read.
        """
        last = self._last(partition)
        if not last:
            return None
        path = self._entry(partition, last)
        data = self._store.get(path)
        try:
            return Snapshot.model_validate_json(data or b"")
        except ValidationError as error:
            raise StoreCorrupt(
                f"the shard's entry {path} in {self._store.name} cannot be read ({error.error_count()} errors): "
                "restore it from a backup, or delete it to go back to the one before"
            ) from error

    def claim(self, partition: int, owner: str) -> Snapshot:
        """Makes `owner` the owner of a partition, whoever owned it before; what it goes on from."""
        while True:
            last = self.newest(partition)
            taken = Snapshot(
                partition=partition,
                number=last.number + 1 if last else 1,
                owner=owner,
                at=now(),
                offset=last.offset if last else {},
                files=last.files if last else {},
            )
            try:
                return self._append(taken)
            except StaleShard:
                # Somebody else wrote meanwhile: take over from there.
                continue

    def publish(self, mine: Snapshot, files: Mapping[str, Path], offset: Mapping[str, int]) -> Snapshot:
        """Writes the next snapshot after `mine`, with these files.

        Raises:
            StaleShard: somebody else has taken the partition over; what was read since `mine` is theirs to read again.
        """
        hashes = {}
        for name, file in files.items():
            data = file.read_bytes()
            hashes[name] = hashlib.sha256(data).hexdigest()
            self._store.create(self._file(mine.partition, hashes[name]), data)
        fresh = Snapshot(
            partition=mine.partition,
            number=mine.number + 1,
            owner=mine.owner,
            at=now(),
            offset=dict(offset),
            files=hashes,
        )
        written = self._append(fresh)
        self._collect(written)
        return written

    def fetch(self, snapshot: Snapshot, folder: Path) -> Path:
        """The shard's folder at `folder`, with exactly the snapshot's files, every one verified.

        Raises:
            StoreCorrupt: a file is missing or altered.
            RegistryError: the folder cannot be written.
        """
        try:
            for old in sorted(folder.rglob("*"), reverse=True) if folder.exists() else ():
                old.rmdir() if old.is_dir() else old.unlink()
            folder.mkdir(parents=True, exist_ok=True)
            for name, expected in snapshot.files.items():
                data = self._store.get(self._file(snapshot.partition, expected))
                found = hashlib.sha256(data).hexdigest() if data is not None else "missing"
                if data is None or found != expected:
                    raise StoreCorrupt(
                        f"the file {name} of partition {snapshot.partition}'s snapshot {snapshot.number} should have "
                        f"SHA-256 {expected}, but is {found}: delete that entry of its log to go back to the one before"
                    )
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(data)
        except OSError as error:
            raise RegistryError(
                f"the shard cannot be written to {folder}: {error.strerror or error}: make it writable, or set "
                "ingest.path"
            ) from error
        return folder

    def _append(self, snapshot: Snapshot) -> Snapshot:
        path = self._entry(snapshot.partition, snapshot.number)
        created = self._store.create(path, snapshot.model_dump_json().encode())
        # Old numbers are removed one day, and then one could be created again: only the last number counts.
        if not created or self._last(snapshot.partition, snapshot.number) != snapshot.number:
            if created:
                self._store.delete(path)
            raise StaleShard(
                f"partition {snapshot.partition} was taken over from {snapshot.owner} by another ingester: what was "
                "read since the last snapshot is read again there"
            )
        return snapshot

    def _collect(self, newest: Snapshot) -> None:
        partition = newest.partition
        numbers = self._numbers(partition)
        used = set(newest.files.values())
        for number in numbers[-KEPT:]:
            data = self._store.get(self._entry(partition, number))
            used.update(Snapshot.model_validate_json(data).files.values() if data else ())
        for number in numbers[:-KEPT]:
            self._store.delete(self._entry(partition, number))
        items = tuple(self._store.items(f"{self._prefix}/{partition}"))
        # By the store's clock, which may be behind ours: the entry of this snapshot was written just now.
        present = min(now(), max((item.modified.timestamp() for item in items), default=0.0))
        for item in items:
            *_, kind, name = item.path.split("/")
            if kind == "files" and name not in used and item.modified.timestamp() < present - GRACE_SECONDS:
                self._store.delete(item.path)

    def _last(self, partition: int, known: int = 0) -> int:
        """Number of the last entry, 0 where there is none; `known` is there.

        A store may list late: behind what it lists, and what was seen before, one number after the other is asked for.
        """
        last = max([known, *self._numbers(partition)])
        seen = self._seen.get(partition, 0)
        if seen > last and self._store.size(self._entry(partition, seen)) is not None:
            last = seen
        while self._store.size(self._entry(partition, last + 1)) is not None:
            last += 1
        self._seen[partition] = last
        return last

    def _numbers(self, partition: int) -> list[int]:
        items = self._store.items(f"{self._prefix}/{partition}/log")
        return sorted(int(found[1]) for item in items if (found := _ENTRY.search(item.path)))

    def _entry(self, partition: int, number: int) -> str:
        return f"{self._prefix}/{partition}/log/{number:08d}.json"

    def _file(self, partition: int, digest: str) -> str:
        return f"{self._prefix}/{partition}/files/{digest}"
