"""How events are recorded, and how they come into memory."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from perdure.config.section import Count, Positive, Section


class StreamSettings(Section):
    """Where live events are recorded."""

    url: str = "sqlite:var/perdure/stream.db"
    """`sqlite:PATH` or `kafka://HOST:PORT,HOST:PORT`; the scheme picks the implementation."""
    busy_timeout: Positive = 5.0
    """Seconds to wait for a database that another process has locked (SQLite)."""
    topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")] = "perdure.events"
    """Topic of the records (this and what follows: Kafka)."""
    create_topic: bool = True
    """Make the topic where it is missing; otherwise that is an error."""
    partitions: Count = 8
    """Partitions of a topic that is made here; one that is there keeps its own."""
    replication: Annotated[int, Field(ge=-1)] = -1
    """Copies of each partition of a topic that is made here; -1 is the broker's default."""
    delivery_seconds: Positive = 30.0
    """How long the broker may take to acknowledge or to answer before that is an error."""
    on_gap: Literal["skip", "stop"] = "skip"
    """When retention has removed records before memory read them: go on behind the gap and count them, or stop."""
    dead_letter_topic: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,249}$")] = ""
    """Topic that records which cannot be read are copied to, beside quarantine; empty for none."""
    group: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,200}$")] = "perdure"
    """Consumer group: under its name the broker shows how far memory has read."""
    security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How the broker is spoken to."""
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How this client proves who it is, with SASL."""
    sasl_username: str = ""
    """Name of this client, with SASL."""
    sasl_password_file: str = ""
    """File with this client's password, with SASL: a secret stands in no setting."""
    tls_ca_file: str = ""
    """File with the certificates (PEM) that vouch for the broker; empty for the system's."""
    tls_cert_file: str = ""
    """File with this client's own certificate (PEM), where the broker asks for one."""
    tls_key_file: str = ""
    """File with the key (PEM) of this client's certificate."""
    tls_check_hostname: bool = True
    """Whether the broker's certificate must carry the name that was connected to."""


class SpoolSettings(Section):
    """Where a serving process keeps records until a remote stream has them."""

    path: str = "var/perdure/spool"
    """Folder of the spool; each server has its own. Of several `serving.processes` all but the first have a folder of
    their own in it."""
    max_bytes: Count = 1_000_000_000
    """Most bytes kept, shared evenly by `serving.processes`; what happens beyond is `serving.on_record_failure`."""
    fsync: Literal["always", "interval", "never"] = "always"
    """When records are forced to the disk: before they count as recorded, every `fsync_seconds`, or when the system
    likes. A killed process loses nothing with any of them; a power cut what was not forced."""
    fsync_seconds: Positive = 1.0
    """Seconds between two forced writes, with `interval`."""


class IngestSettings(Section):
    """How the stream comes into memory."""

    shards: bool = False
    """Others read the stream (`perdure ingest`, as many as wanted, each some partitions of the topic), and a turn puts
    together what they have read; otherwise the turn reads the stream itself."""
    path: str = "var/perdure/shards"
    """Folder for the partitions that an ingester is reading."""
    snapshot_seconds: Positive = 60.0
    """Seconds between two snapshots of a partition; what was read since the last one is read again after a crash."""
    host: str = "127.0.0.1"
    """Address of /metrics and /healthz of `perdure ingest`; the default is this machine only."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of /metrics and /healthz of `perdure ingest`; 0 is off."""
