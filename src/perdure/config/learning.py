"""How a turn learns and judges, and when turns run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from perdure.config.section import Count, Positive, Section, Share


class ModelSettings(Section):
    """The encoder and the analytic head."""

    name: str = "all-MiniLM-L6-v2"
    """A folder, a model packaged for Python, or a name in the local Hugging Face cache."""
    max_tokens: Count = 128
    """Longer texts are cut; the first and the last tokens are kept."""
    batch: Count = 32
    """Texts embedded at once."""
    threads: Annotated[int, Field(ge=0)] = 0
    """CPU threads of this process; 0 leaves the choice to torch. In serving they are those of one batch, and with 0 the
    cores are shared out."""
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
    learning_rate: Positive = 1e-3
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
    """Weight of the cross-entropy to what the adapter answered before the update or its second half, on replayed rows,
    over the labels that it knew."""
    fresh_rows: Count = 2000
    """Most new rows that one update trains on; with `replay_rows` it bounds the update's cost."""
    replay_rows: Annotated[int, Field(ge=0)] = 4000
    """Most remembered rows that one update trains on; 0 switches replay off."""
    shares: Annotated[tuple[Share, ...], Field(min_length=1)] = tuple(tenths / 10 for tenths in range(1, 10))
    """Weights of the adapted head in the mean of both heads' log probabilities, to choose among on rows that it has not
    seen."""
    min_rows: Count = 16
    """Fewer new rows than this are not worth an update. With twice as many an adapter's later updates learn in two
    halves: about the second half's rows the judge asks before they are learned from."""


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
    """Most rows that were right and become wrong, as a share of the paired rows on known labels; a candidate that has
    more is refused where that is beyond chance, and is inconclusive where it may be chance."""
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
    lease_seconds: Annotated[float, Field(ge=0)] = 30.0
    """Of several trainers on one registry one works; the others take over when it has been silent for so long. 0: no
    lease, for one trainer that nobody starts twice."""
    host: str = "127.0.0.1"
    """Address of /metrics and /healthz; the default is this machine only."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port of /metrics and /healthz; 0 is off."""
