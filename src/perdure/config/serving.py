"""The online API, and what the processes log."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field

from perdure.config.section import Count, Positive, Section
from perdure.logs import LogFormat

AllowAnonymous = Literal["", "anyone who reaches this address may do everything"]


ALLOW_ANONYMOUS: str = get_args(AllowAnonymous)[1]
"""What `serving.allow_anonymous` must say."""


MAX_TEXTS = 10_000
"""Most texts that one request may ever have; more are not even read."""


class ServingSettings(Section):
    """The online API."""

    host: str = "127.0.0.1"
    """Address to listen at; the default is this machine only."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes a free one."""
    processes: Count = 1
    """Processes that answer at the port, each with the model in memory; no more than there are cores pays. Limits of
    queues are for each of them."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port for the Open Inference Protocol over gRPC, at the same address; 0 takes a free one, none is off."""
    engine: Literal["auto", "onnx", "torch"] = "auto"
    """What runs the model: ONNX Runtime where a version was exported (`model.export`), else torch; or one of both."""
    parallel_batches: Annotated[int, Field(ge=0)] = 0
    """Batches that a process runs at once, where versions are exported; 0 for one a core, up to four. They share the
    cores: of 16, each of four gets four."""
    max_batch: Count = 32
    """Most texts answered in one forward pass."""
    batch_seconds: Positive = 0.025
    """What a forward pass of several texts should take at most, as measured on this machine: the long ones come in
    smaller batches, so that what waits behind them need not wait long."""
    max_queue: Count = 1024
    """Requests waiting for the model at most; one more is answered 429."""
    queue_seconds: Positive = 0.5
    """Longest that requests may keep waiting for the model, by what waits and how fast it goes; more is answered 429.
    A burst, before which nothing waited, may lead to twice that."""
    timeout_seconds: Positive = 30.0
    """Longest that a request may take; then it is answered 504. Clients ask for less with `X-Request-Timeout-Ms`."""
    refresh_seconds: Positive = 1.0
    """How often serving looks for a new promotion."""
    max_texts: Annotated[int, Field(ge=1, le=MAX_TEXTS)] = 64
    """Most texts in one request."""
    max_text_bytes: Annotated[int, Field(ge=1, le=1_000_000)] = 1_000_000
    """Longest text, in UTF-8; what the encoder does not see of it (`model.max_tokens`) is recorded all the same."""
    max_body_bytes: Count = 8_000_000
    """Longest request body. A text of 1 MB with every character escaped still fits."""
    record: bool = True
    """Record predictions and feedback in the stream."""
    record_queue: Count = 10_000
    """Records waiting for the stream."""
    on_record_failure: Literal["answer", "refuse"] = "answer"
    """What happens when an interaction cannot be recorded: answer with `recorded: false`, or refuse with 503."""
    abstain: bool = False
    """Say of each answer whether its confidence is below the version's threshold, where a request does not say."""
    neighbours: Annotated[int, Field(ge=1, le=100)] = 5
    """Nearest remembered samples that an explanation shows, where a request does not say."""
    drain_seconds: Positive = 10.0
    """How long requests under way may take to end when the process is stopped."""
    lame_duck_seconds: Annotated[float, Field(ge=0)] = 5.0
    """How long requests are still taken after SIGTERM, while readiness says no, so that whoever sends them can turn
    elsewhere; only where something has asked for readiness lately."""
    traces: bool = False
    """Send OpenTelemetry traces, with what `perdure[otel]` installs, to where the OTEL_* variables say."""
    access_log: bool = False
    """Log a line for every request: method, route, status, time, name of the key; nothing of what was sent."""
    keys: str = ""
    """File of the API keys that are asked for (`perdure keys create`); empty for none. Changes are followed."""
    open_metrics: bool = False
    """Let /metrics be read without a key where keys are asked for; otherwise that needs the scope `metrics`."""
    allow_anonymous: AllowAnonymous = ""
    """Without keys only loopback is listened at, unless these words are said here."""
    tls_certificate: str = ""
    """File with the certificate (PEM), and those that vouch for it; empty for no TLS."""
    tls_key: str = ""
    """File with the certificate's key (PEM); empty where the certificate's file holds it too."""
    tls_key_password_file: str = ""
    """File with the password of that key: a secret stands in no setting."""


class LogSettings(Section):
    """What `perdure serve`, `train` and `ingest` log, to standard error."""

    format: LogFormat = "text"
    """Lines for people, or a JSON object a line."""
