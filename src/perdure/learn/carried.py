"""What a version carries along for the next update: its adapter, the EWC anchor, which rows it was offered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from perdure.errors import VersionDamaged
from perdure.learn.ewc import Anchor
from perdure.learn.network import HEAD, Origin
from perdure.learn.seen import SEEN_FILE
from perdure.model.classifier import AnalyticClassifier

EWC_FILE = "ewc.safetensors"


def origin_of(classifier: AnalyticClassifier, folder: Path) -> Origin | None:
    """The adapter and anchor of a version that an update may go on from; None when it has no adapter.

    Args:
        classifier: the version.
        folder: its files.

    Raises:
        VersionDamaged: the anchor cannot be read.
    """
    if classifier.adapted is None:
        return None
    adapted = classifier.adapted
    weights = {**adapted.adapter.weights, HEAD: torch.from_numpy(adapted.weights)}
    return Origin(adapted.adapter.shape, weights, adapted.labels, load_anchor(folder))


def load_anchor(folder: Path) -> Anchor | None:
    """The EWC anchor of the version in `folder`; None when it has none.

    Raises:
        VersionDamaged: it cannot be read.
    """
    path = folder / EWC_FILE
    if not path.exists():
        return None
    parts: dict[str, dict[str, torch.Tensor]] = {"theta": {}, "fisher": {}}
    try:
        tensors = load_file(path)
        samples = int(tensors.pop("samples"))
        for name, tensor in tensors.items():
            kind, _, key = name.partition("/")
            parts[kind][key] = tensor.float()
        whole = HEAD in parts["fisher"] and all(
            parts["theta"][key].shape == fisher.shape for key, fisher in parts["fisher"].items()
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise VersionDamaged(f"the EWC anchor {path} cannot be read: {error!r}") from error
    if not whole:
        raise VersionDamaged(f"the Fisher information in {path} does not fit the parameters beside it")
    return Anchor(parts["theta"], parts["fisher"], samples)


def anchor_files(anchor: Anchor) -> dict[str, bytes]:
    """The file that `load_anchor` reads."""
    # bfloat16 has float32's range, which Fisher information needs, and half its size.
    tensors = {f"theta/{name}": value.float().contiguous() for name, value in anchor.theta.items() if name == HEAD}
    tensors |= {f"theta/{name}": value.bfloat16().contiguous() for name, value in anchor.theta.items() if name != HEAD}
    tensors |= {f"fisher/{name}": value.bfloat16().contiguous() for name, value in anchor.fisher.items()}
    tensors["samples"] = torch.tensor(anchor.samples)
    return {EWC_FILE: save(tensors)}


def carried_files(folder: Path) -> Mapping[str, bytes]:
    """Files of a version that a head update passes on unchanged."""
    return {name: (folder / name).read_bytes() for name in (EWC_FILE, SEEN_FILE) if (folder / name).exists()}
