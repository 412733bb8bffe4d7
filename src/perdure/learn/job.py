"""An update as one process tells it to the others: texts, labels, origin, settings, as safetensors with a header."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from perdure.config import Device, LoraSettings
from perdure.learn.ewc import Anchor
from perdure.learn.network import Origin, TrainingSet
from perdure.model.adapter import AdapterShape


@dataclass(frozen=True, slots=True)
class EncoderName:
    """What `load_encoder` needs to give the same encoder elsewhere."""

    name: str
    max_tokens: int
    adapted_layers: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Job:
    """One update to take part in."""

    encoder: EncoderName
    settings: LoraSettings
    seed: int
    device: Device
    data: TrainingSet
    origin: Origin | None

    def to_bytes(self) -> bytes:
        tensors: dict[str, Tensor] = {}
        header: dict[str, Any] = {
            "encoder": [
                self.encoder.name,
                self.encoder.max_tokens,
                self.encoder.adapted_layers,
                self.encoder.fingerprint,
            ],
            "settings": self.settings.model_dump(mode="json"),
            "seed": self.seed,
            "device": self.device,
            "data": [self.data.texts, self.data.labels, self.data.fresh],
        }
        if self.origin is not None:
            header["origin"] = [self.origin.shape.to_json(), self.origin.labels]
            tensors |= {f"weights/{name}": value for name, value in self.origin.weights.items()}
            if self.origin.anchor is not None:
                header["samples"] = self.origin.anchor.samples
                for kind, values in (("theta", self.origin.anchor.theta), ("fisher", self.origin.anchor.fisher)):
                    tensors |= {f"{kind}/{name}": value for name, value in values.items()}
        whole = {name: value.contiguous().clone() for name, value in tensors.items()}
        return save(whole, metadata={"job": json.dumps(header)})

    @classmethod
    def from_bytes(cls, message: bytes) -> Job:
        length = int.from_bytes(message[:8], "little")
        header = json.loads(json.loads(message[8 : 8 + length])["__metadata__"]["job"])
        tensors = load(message)

        def part(kind: str) -> dict[str, Tensor]:
            return {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}

        origin = None
        if "origin" in header:
            shape, labels = header["origin"]
            anchor = Anchor(part("theta/"), part("fisher/"), header["samples"]) if "samples" in header else None
            origin = Origin(AdapterShape.from_json(shape), part("weights/"), tuple(labels), anchor)
        texts, labels, fresh = header["data"]
        return cls(
            EncoderName(*header["encoder"]),
            LoraSettings.model_validate(header["settings"]),
            header["seed"],
            header["device"],
            TrainingSet(tuple(texts), tuple(labels), fresh),
            origin,
        )
