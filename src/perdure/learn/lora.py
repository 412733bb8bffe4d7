"""One incremental LoRA update: continue an adapter on what is new, hold on to what is old."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from perdure.config import Device, LoraSettings
from perdure.errors import TrainingDiverged
from perdure.learn.batches import mixed_batches
from perdure.learn.device import product_precision, training_device
from perdure.learn.ewc import Anchor, decayed_sum
from perdure.learn.job import EncoderName, Job
from perdure.learn.network import HEAD, HEAD_SCALE, Network, Origin, TrainingSet
from perdure.learn.processes import Processes
from perdure.learn.replicas import Replicas, gradients_of
from perdure.model.adapter import AdapterShape
from perdure.model.encoder import Encoder

logger = logging.getLogger(__name__)

__all__ = ["HEAD", "HEAD_SCALE", "LoraLearner", "Origin", "Trained", "TrainingSet", "Update"]

WARM_UP = 0.1
"""Share of the steps in which the learning rate rises."""
CLIP = 1.0


@dataclass(frozen=True, slots=True)
class Update:
    """The outcome of an update."""

    shape: AdapterShape
    weights: Mapping[str, Tensor]
    labels: tuple[str, ...]
    anchor: Anchor
    """Its own parameters and the Fisher information so far: what an update that goes on from it is held to."""
    steps: int
    loss: float
    """Mean loss over the last tenth of the steps."""
    penalty: float
    """EWC penalty at the end, λ included."""
    dropped: str | None
    """Why the origin's anchor could not be used; None when it was, or there was none."""


@dataclass(frozen=True, slots=True)
class Trained:
    """A network that has been trained, before its Fisher information is known."""

    network: Network
    anchor: Anchor | None
    """What it was held to."""
    steps: int
    loss: float
    """Mean loss over the last tenth of the steps."""
    dropped: str | None
    """Why the origin's anchor could not be used; None when it was, or there was none."""

    def origin(self) -> Origin:
        """What training goes on from with other rows, held to what this was held to."""
        return Origin(self.network.shape, self.network.weights(), self.network.labels, self.anchor)


class LoraLearner:
    """Trains adapters for one encoder.

    Args:
        encoder: the frozen encoder.
        settings: rank, epochs, strengths.
        seed: where all randomness comes from.
        device: where to train.
        progress: called with (step, steps) now and then.
        stage: called with the name of what begins: `frozen` (the pass below the cut), `head`, `steps`.
    """

    def __init__(
        self,
        encoder: Encoder,
        settings: LoraSettings,
        *,
        seed: int,
        device: Device = "auto",
        progress: Callable[[int, int], None] | None = None,
        stage: Callable[[str], None] | None = None,
    ) -> None:
        self._encoder = encoder
        self._settings = settings
        self._seed = seed
        self._device = device
        self._progress = progress or (lambda _step, _steps: None)
        self._stage = stage or (lambda _name: None)

    def update(self, data: TrainingSet, origin: Origin | None) -> Update:
        """Trains on `data`, starting from the origin's adapter where it fits.

        Raises:
            ValueError: there are no rows.
            SettingError: the device or the precision that is wanted is not there.
            TrainingDiverged: the loss is not a number any more.
        """
        rng = np.random.default_rng(self._seed)
        trained = self._trained(data, origin, rng)
        network, before = trained.network, trained.anchor
        theta = network.theta()
        penalty = self._settings.ewc * float(before.penalty(theta)) if before else 0.0
        weights = network.weights()
        fisher, samples = network.fisher(self._encoder, self._settings, rng, self._seed)
        anchor = Anchor(
            theta, decayed_sum(before.fisher if before else None, fisher, self._settings.fisher_decay), samples
        )
        return Update(
            shape=network.shape,
            weights=weights,
            labels=network.labels,
            anchor=anchor,
            steps=trained.steps,
            loss=trained.loss,
            penalty=penalty,
            dropped=trained.dropped,
        )

    def train(self, data: TrainingSet, origin: Origin | None) -> Trained:
        """The training of an update alone, without the Fisher information that the next one needs.

        Raises:
            ValueError: there are no rows.
            SettingError: the device or the precision that is wanted is not there.
            TrainingDiverged: the loss is not a number any more.
        """
        return self._trained(data, origin, np.random.default_rng(self._seed))

    def _trained(self, data: TrainingSet, origin: Origin | None, rng: np.random.Generator) -> Trained:
        if not data.texts:
            raise ValueError("an update needs at least one row, but the training set is empty")
        processes = Processes.current()
        if processes.leads and processes.count > 1:
            job = Job(_name_of(self._encoder), self._settings, self._seed, self._device, data, origin)
            processes.tell(job.to_bytes())
        encoder = self._encoder.on(training_device(self._device))
        dtype = product_precision(self._settings.precision, encoder.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self._seed)
            network = Network(encoder, self._settings, data, dtype, processes)
        origin, dropped = network.continue_from(origin)
        if dropped:
            logger.warning("the earlier adapter and EWC anchor are not used: %s", dropped)
        self._stage("frozen")
        network.pass_below()
        self._stage("head")
        network.start_head(origin)
        if origin is not None and self._settings.distillation:
            network.listen(origin)
        self._stage("steps")
        anchor = network.anchor(origin)
        steps, loss = self._run(network, data, anchor, rng, processes)
        return Trained(network, anchor, steps, loss, dropped)

    def _run(
        self,
        network: Network,
        data: TrainingSet,
        anchor: Anchor | None,
        rng: np.random.Generator,
        processes: Processes,
    ) -> tuple[int, float]:
        settings = self._settings
        lengths = [len(ids) for ids in network.tokens]
        epochs = [
            list(
                mixed_batches(
                    data.labels[: data.fresh],
                    data.labels[data.fresh :],
                    batch=settings.batch,
                    lengths=lengths,
                    rng=rng,
                )
            )
            for _ in range(settings.epochs)
        ]
        batches = [batch for epoch in epochs for batch in epoch]
        parameters = network.parameters()
        both = gradients_of(parameters)
        gradients = both[:-1]
        pull = network.pull(anchor, settings.ewc) if anchor is not None and settings.ewc else None
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm_up_then_cosine(len(batches)))
        losses: list[Tensor] = []
        with Replicas(network, settings.batch, both.device) as replicas:
            for step, batch in enumerate(batches):
                replicas.sum_gradients(batch, settings, both)
                processes.add_up(both)
                loss = both[-1].clone()
                if pull is not None:
                    loss = loss + pull.add_gradients()
                _clip(gradients)
                optimizer.step()
                schedule.step()
                losses.append(loss)
                self._progress(step + 1, len(batches))
        tail = float(torch.stack(losses[-max(1, len(losses) // 10) :]).mean())
        if not math.isfinite(tail):
            raise TrainingDiverged(
                f"the update's loss is {tail} after {len(batches)} steps with lora.learning_rate "
                f"{settings.learning_rate}: lower it"
            )
        return len(batches), tail


def _name_of(encoder: Encoder) -> EncoderName:
    return EncoderName(encoder.name, encoder.max_tokens, encoder.adapted_layers, encoder.fingerprint)


def _clip(gradients: Tensor) -> None:
    """Shortens the gradient to length `CLIP` where it is longer."""
    gradients.mul_((CLIP / (gradients.norm() + 1e-6)).clamp(max=1.0))


def _warm_up_then_cosine(steps: int) -> Callable[[int], float]:
    warm = max(1, math.ceil(WARM_UP * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return factor
