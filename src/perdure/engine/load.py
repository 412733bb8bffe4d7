"""A version as serving has it."""

from __future__ import annotations

from pathlib import Path

from perdure.engine.choice import Choice, check_torch
from perdure.engine.served import exported, load_served
from perdure.errors import VersionDamaged
from perdure.model.base import Classifier


def load_version(
    folder: Path,
    version: str,
    *,
    batch: int,
    threads: int = 0,
    graph_threads: int = 0,
    engine: Choice = "auto",
    encoder: str | None = None,
) -> Classifier:
    """The version in `folder`, run by its exported graphs where it has them, else by torch.

    Args:
        folder: with a version's files.
        version: its name.
        batch: texts in one pass of the encoder.
        threads: of one pass by torch; 0 leaves the choice to it.
        graph_threads: of one pass by exported graphs, several of which may run at once; 0 for as many as cores.
        engine: `onnx` or `torch` for that and no other.
        encoder: for torch: where the encoder is found on this machine; by default under the name it had.

    Raises:
        VersionDamaged: a file is missing, cannot be read, or was made with another encoder; or there are no graphs
            where they were asked for.
        ModelNotFound: the encoder is not here.
        ExtraMissing: torch would run it, and is not installed.
    """
    if engine != "torch" and exported(folder):
        return load_served(folder, version, batch=batch, threads=graph_threads)
    if engine == "onnx":
        raise VersionDamaged(
            f"version {version} was not exported: set serving.engine to auto or torch, or model.export to auto and let "
            "the next version be made"
        )
    check_torch(f"version {version}, which was not exported," if engine == "auto" else "serving.engine=torch")
    # Imported here: it brings torch, which takes seconds, and which serving exported versions does without.
    import torch

    from perdure.model.classifier import load_classifier

    if threads:
        torch.set_num_threads(threads)
    return load_classifier(folder, version, batch=batch, encoder=encoder)
