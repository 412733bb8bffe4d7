"""One tree of settings; each default stands here, once.

Settings come, later ones over earlier ones, from the defaults below, a YAML file (`--config perdure.yaml`), the
environment (`PERDURE_SECTION__NAME`) and the command line (`--set section.name=value`). A setting that does not exist
is refused with the nearest one that does.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from perdure.errors import SettingError
from perdure.logs import LogFormat

ENV_PREFIX = "PERDURE_"

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Device = Literal["auto", "cpu", "cuda"]
AllowAnonymous = Literal["", "anyone who reaches this address may do everything"]


ALLOW_ANONYMOUS: str = get_args(AllowAnonymous)[1]
"""What `serving.allow_anonymous` must say."""


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


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
    """Folder of the spool; each serving process has its own."""
    max_bytes: Count = 1_000_000_000
    """Most bytes kept; what happens beyond is `serving.on_record_failure`."""
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


class RegistrySettings(Section):
    """Where versions and promotions are kept."""

    url: str = "var/perdure/registry"
    """A folder, or a URL of any object store (`s3://`, `gs://`, `az://`, `memory://`)."""
    retain: Count = 10
    """Versions kept beside champions and their parents."""


class MemorySettings(Section):
    """What is kept of the past to learn from and to judge by."""

    path: str = "var/perdure/memory"
    """Folder of the memory; one process writes it at a time."""
    per_class: Count = 100
    """Samples per label, held-out ones included."""
    holdout_share: Share = 0.2
    """Share of all pairs of text and label, by a hash, that is the judge's evidence and that no adapter trains on.

    A memory's share may be lowered, but not raised again."""
    pending_labels_below: Count = 3
    """Examples that a new label needs before it becomes a class."""
    join_ttl_hours: Positive = 720.0
    """How long an interaction waits for feedback, and feedback for its interaction; by event time."""
    join_rows: Count = 200_000
    """Most interactions of one partition that wait for, or may still change, their label."""
    half_life_days: Annotated[float, Field(ge=0)] = 0.0
    """Half-life of a sample's priority; 0 means that age does not matter."""
    near_duplicate: Share = 0.97
    """Cosine similarity from which two samples count as saying the same."""
    quarantine_rows: Count = 10_000
    """Most unreadable or doubtful records kept to be looked at; older ones are dropped and counted."""
    fresh_rows: Count = 20_000
    """Most labelled rows that wait for the next turn; above it the rows of lowest priority are left out of LoRA."""

    @property
    def class_rows(self) -> int:
        """Samples with which a label becomes a class: no more than are kept of it."""
        return min(self.pending_labels_below, self.per_class)


class ModelSettings(Section):
    """The encoder and the analytic head."""

    name: str = "all-MiniLM-L6-v2"
    """A folder, a model packaged for Python, or a name in the local Hugging Face cache."""
    max_tokens: Count = 128
    """Longer texts are cut; the first and the last tokens are kept."""
    batch: Count = 32
    """Texts embedded at once."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of this process; 0 leaves the choice to torch."""
    export: Literal["auto", "int8", "float32", "none"] = "auto"
    """What a version is exported to, for serving without torch. `auto` takes 8-bit integers where they answer like the
    version itself, else float32; `none` leaves it to torch."""
    features: Annotated[int, Field(ge=64, le=32768, multiple_of=2)] = 8192
    """Random Fourier features D of the analytic head; its statistics take 4·D² bytes."""
    bandwidth: Positive = 1.4
    """Length scale of the Gaussian kernel on the unit sphere."""
    ridge: tuple[Positive, ...] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Ridge penalties to choose from by leave-one-out error."""


class GateSettings(Section):
    """What is worth learning from."""

    enabled: bool = True
    """Choose among the rows of a turn; without it every labelled row is learned from, and no other."""
    known: Share = 0.95
    """A labelled sample that the champion gets right with at least this confidence teaches nothing: skip."""
    confident: Share = 0.9
    """Confidence from which a champion's contradiction of a label counts."""
    neighbours: Count = 5
    """Neighbours in memory that are asked."""
    agreement: Share = 0.8
    """Share of neighbours that must agree to quarantine a label, or to accept a pseudo-label."""
    pseudo_labels: bool = True
    """Learn from rows that nobody has labelled, where champion and neighbours agree."""
    pseudo_share: Share = 0.2
    """Most pseudo-labels, as a share of the rows learned from in a turn."""
    pseudo_confidence: Share = 0.95
    """Confidence that a pseudo-label needs."""
    pseudo_age: Annotated[int, Field(ge=0)] = 2
    """Turns for which a class must have been known before pseudo-labels of it are taken."""


class LoraSettings(Section):
    """The challenger: one low-rank adapter, continued from turn to turn."""

    enabled: bool = True
    """Make LoRA candidates; without it only the head learns."""
    rank: Count = 8
    """Rank r of the adapter's factors."""
    alpha: Count = 16
    """The adapter's product is scaled by α/r."""
    layers: Count = 3
    """Last layers of the encoder that are adapted; those below are computed once for both feature spaces."""
    epochs: Count = 3
    """Passes over the training rows in one update."""
    batch: Count = 32
    """Rows in one training step."""
    learning_rate: Positive = 5e-4
    """Of AdamW, at its peak."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the large matrix products while training; `auto` takes bfloat16 where the device has instructions for it.
    Factors, head and all else are float32."""
    ewc: Annotated[float, Field(ge=0)] = 100.0
    """λ of the EWC penalty (λ/2)·Σ F·(θ−θ*)²; 0 switches it off."""
    fisher_decay: Share = 0.9
    """γ in F_t = γ·F_{t−1} + F_new."""
    fisher_samples: Count = 256
    """Rows that the Fisher information is estimated on."""
    distillation: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the cross-entropy to the champion's answers on the labels it knows."""
    fresh_rows: Count = 2000
    """Most new rows that one update trains on; with `replay_rows` it bounds the update's cost."""
    replay_rows: Annotated[int, Field(ge=0)] = 4000
    """Most remembered rows that one update trains on; 0 switches replay off."""
    shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    """Weights of the adapted head in the mean of both heads' log probabilities, to choose from on rows that it has not
    seen."""
    min_rows: Count = 16
    """Fewer new rows than this are not worth an update."""


class JudgeSettings(Section):
    """When a candidate may replace the champion."""

    margin: Share = 0.02
    """Loss of accuracy on known labels that must be ruled out."""
    margin_new_labels: Share = 0.05
    """The same where a head update brings new labels: more labels cost the old ones a little, whatever the method."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """One-sided confidence of the bounds, before the correction for several candidates."""
    min_rows: Count = 20
    """Fewer paired rows than this are no evidence: inconclusive."""
    new_label_recall: Share = 0.5
    """Least recall on labels that the champion does not know."""
    group_rows: Count = 20
    """Rows that a label must have before its recall can be held against a candidate."""
    group_margin: Share = 0.15
    """Most recall that one such label may lose."""
    negative_flips: Share = 0.05
    """Most rows that were right and become wrong, as a share of the paired rows on known labels."""
    calibration: Share = 0.1
    """Most expected calibration error that a candidate may add."""
    latency_ratio: Positive = 3.0
    """Most time per text, against the champion; only where latency is judged."""
    judge_latency: bool = True
    """Measure and judge the time per text; without it a verdict does not depend on the machine."""
    abstain_precision: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Least share of right answers at or above the confidence below which a version may abstain; with `confidence`."""
    drift_threshold: Share = 0.2
    """Population drift score (Jensen-Shannon distance) from which a column counts as drifted."""
    drift_min_rows: Count = 50
    """Fewer rows than this on either side are too little for a drift test."""
    prediction_shift: Share = 0.2
    """Total-variation distance of predictions, beyond what the labels explain, that refuses a candidate."""


class ServingSettings(Section):
    """The online API."""

    host: str = "127.0.0.1"
    """Address to listen at; the default is this machine only."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes a free one."""
    grpc_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Port for the Open Inference Protocol over gRPC, at the same address; 0 takes a free one, none is off."""
    engine: Literal["auto", "onnx", "torch"] = "auto"
    """What runs the model: ONNX Runtime where a version was exported (`model.export`), else torch; or one of both."""
    workers: Annotated[int, Field(ge=0)] = 0
    """Forward passes that run at once, where versions are exported; 0 for one a core, up to four. They share the cores:
    of 16, each of four gets four."""
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
    max_texts: Count = 64
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


class TrainerSettings(Section):
    """When turns run."""

    interval_seconds: Positive = 300.0
    """Seconds between two turns."""
    cron: str | None = None
    """Five-field cron expression; replaces the interval."""
    min_new_labels: Annotated[int, Field(ge=0)] = 50
    """New labels that start a turn before its time; 0 switches this off."""
    poll_seconds: Positive = 2.0
    """How often the stream is looked at for new labels."""
    niceness: Annotated[int, Field(ge=0, le=19)] = 10
    """How far a turn stands back from what else wants the processor, the API beside it first; 0 is not at all."""
    turn_timeout_seconds: Positive = 3600.0
    """A turn that takes longer is killed; the next one goes on from the last committed stage."""


class Settings(Section):
    """All settings of Perdure."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Everything random follows from it."""
    device: Device = "auto"
    """Where LoRA trains and memory is searched; `auto` takes a GPU where PyTorch, or FAISS, finds one. What was made on
    one is served anywhere."""
    stream: StreamSettings = StreamSettings()
    spool: SpoolSettings = SpoolSettings()
    ingest: IngestSettings = IngestSettings()
    registry: RegistrySettings = RegistrySettings()
    memory: MemorySettings = MemorySettings()
    model: ModelSettings = ModelSettings()
    gate: GateSettings = GateSettings()
    lora: LoraSettings = LoraSettings()
    judge: JudgeSettings = JudgeSettings()
    serving: ServingSettings = ServingSettings()
    trainer: TrainerSettings = TrainerSettings()
    log: LogSettings = LogSettings()

    def with_values(self, values: Mapping[str, Any]) -> Settings:
        """These settings with dotted names (`section.name`) replaced."""
        tree = self.model_dump()
        for name, value in values.items():
            _set(tree, name, value)
        return _validated(tree)


def load_settings(
    file: Path | None = None, overrides: Iterable[str] = (), environ: Mapping[str, str] | None = None
) -> Settings:
    """The settings from defaults, `file`, the environment and `section.name=value` overrides.

    Raises:
        SettingError: the file cannot be read, or a setting is unknown or out of range.
    """
    tree = Settings().model_dump()
    for name, value in _from_file(file):
        _set(tree, name, value)
    for key, text in (os.environ if environ is None else environ).items():
        if names_setting(key):
            _set(tree, key.removeprefix(ENV_PREFIX).lower().replace("__", "."), _parse(text), origin=key)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise SettingError(f"--set needs section.name=value, but got {override!r}")
        _set(tree, name.strip(), _parse(text))
    return _validated(tree)


def names_setting(variable: str) -> bool:
    """Whether the environment's `variable` gives a setting a value; `PERDURE_DATA`, say, is for others."""
    name = variable.removeprefix(ENV_PREFIX)
    return name != variable and ("__" in name or name.lower() in _plain_names())


def setting_names() -> tuple[str, ...]:
    """Every setting's dotted name."""
    return tuple(name for name, _ in _leaves(Settings().model_dump()))


def _plain_names() -> frozenset[str]:
    """Settings that stand in no section."""
    return frozenset(name for name in setting_names() if "." not in name)


def _parse(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _from_file(file: Path | None) -> Iterator[tuple[str, Any]]:
    if file is None:
        return
    try:
        tree = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise SettingError(f"cannot read the settings file {file}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingError(f"the settings file {file} is not YAML: {error}") from error
    if not isinstance(tree, dict):
        raise SettingError(f"the settings file {file} must hold sections, but holds {type(tree).__name__}")
    for name, value in _leaves(tree):
        # A section whose settings are all commented out.
        if value is not None or name not in Settings.model_fields:
            yield name, value


def _leaves(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(tree: dict[str, Any], name: str, value: Any, origin: str | None = None) -> None:
    *sections, leaf = name.split(".")
    branch: Any = tree
    for section in sections:
        branch = branch.get(section) if isinstance(branch, dict) else None
    if not isinstance(branch, dict) or leaf not in branch or isinstance(branch[leaf], dict):
        near = difflib.get_close_matches(name, setting_names(), n=1, cutoff=0.0)
        raise SettingError(f"unknown setting {origin or name!r}: did you mean {near[0]!r}?")
    branch[leaf] = value


def _validated(tree: Mapping[str, Any]) -> Settings:
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SettingError(f"setting {name} cannot be {first['input']!r}: {first['msg']}") from error


def describe_settings() -> Iterator[tuple[str, Any, str]]:
    """Name, default and meaning of every setting, for the documentation and `--help`."""
    for section, field in Settings.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            yield section, field.default, field.description or ""
            continue
        for name, leaf in field.annotation.model_fields.items():
            choices = get_args(leaf.annotation) if leaf.annotation and get_args(leaf.annotation) else ()
            meaning = leaf.description or ""
            if choices and all(isinstance(choice, str) for choice in choices):
                meaning = f"{meaning} One of {', '.join(choices)}.".strip()
            yield f"{section}.{name}", leaf.default, meaning
