"""The versions that Perdure serves: made by `perdure fit` from rows of the data, and kept in registries."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from contestants.child import run_child
from perdure.config import LoraSettings, Settings
from perdure.dataset import DataRow
from perdure.engine.exporter import Export, Exporter
from perdure.engine.served import Engine, exported
from perdure.model.adapter import Adapter, AdapterShape, linear_names
from perdure.model.classifier import AdaptedHead, AnalyticClassifier, load_classifier
from perdure.model.layout import ENGINE_FILE
from perdure.registry import Registry
from servers.entrants import perdure_command, perdure_surroundings

MAX_TOKENS = 512
"""As much of a text as the peers read; Perdure's default would cut the longest ones."""
SECOND = "second"
"""Names the version that a hot swap goes to: the same files under another name."""
RIDGE = 0.1
BATCH = 32


@dataclass(frozen=True, slots=True)
class Fitted:
    """Two registries."""

    registry: Path
    """Its champion is the version with one feature space, fitted by `perdure fit`; `second` has the same files."""
    two_spaces: Path
    """Its champion is that version with an adapted head beside the first."""


def fitted(folder: Path, model: str, rows: Sequence[DataRow]) -> Fitted:
    """The registries in `folder`; made where they are not there yet.

    Raises:
        Unavailable: `perdure fit` fails; with what it said.
    """
    made = Fitted(folder / "registry", folder / "registry-two-spaces")
    if (folder / "complete").is_file():
        return made
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = folder / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({"text": row.text, "label": row.label}) + "\n" for row in rows), encoding="utf-8"
    )
    settings = (
        f"registry.url={made.registry}",
        f"stream.url=sqlite:{folder / 'stream.db'}",
        f"spool.path={folder / 'spool'}",
        f"memory.path={folder / 'memory'}",
        f"model.max_tokens={MAX_TOKENS}",
        # The second feature space is put beside the first one afterwards.
        "lora.enabled=false",
        # What becomes the champion must not depend on what else the machine has to do.
        "judge.judge_latency=false",
    )
    run_child(perdure_command("fit", "--data", str(data), "--model", model, settings=settings), perdure_surroundings())
    first = Registry(str(made.registry))
    champion = first.champion()
    assert champion is not None, "perdure fit has made no champion"
    _copy(first, champion.version)
    _second_space(first, champion.version, made.two_spaces, folder / "cache", rows)
    (folder / "complete").touch()
    return made


def champion(registry: Path) -> str:
    """The name of the version in force."""
    promotion = Registry(str(registry)).champion()
    assert promotion is not None, f"{registry} has no champion"
    return promotion.version


def pair(registry: Path) -> tuple[str, str]:
    """The names of `second` and of the version that it is a copy of, whichever of them is in force."""
    parent = Registry(str(registry)).card(SECOND).parent
    assert parent is not None, "a copy names what it was made from"
    return SECOND, parent


def loaded(registry: Path, cache: Path) -> AnalyticClassifier:
    """The champion, in float32."""
    name = champion(registry)
    return load_classifier(Registry(str(registry)).fetch(name, cache), name, batch=BATCH)


def _copy(registry: Registry, name: str) -> None:
    card = registry.card(name)
    files, shared = (
        {file: registry.read(name, file) for file, about in card.files.items() if about.shared is wanted}
        for wanted in (False, True)
    )
    registry.write(card.model_copy(update={"name": SECOND, "parent": name, "kind": "head"}), files, shared)


def _second_space(first: Registry, name: str, place: Path, cache: Path, rows: Sequence[DataRow]) -> None:
    """Writes a version with an adapter of the default shape.

    Its factors are small random numbers and its head is fitted by ridge regression on some rows: what an answer costs
    depends on their shapes alone.
    """
    folder = first.fetch(name, cache)
    version = load_classifier(folder, name, batch=BATCH)
    encoder, lora = version.encoder, LoraSettings()
    shape = AdapterShape(lora.rank, lora.alpha, encoder.adapted_layers, linear_names(encoder.top))
    maps = dict(encoder.top.named_modules())
    draw = torch.Generator().manual_seed(0)
    factors = {}
    for target in shape.targets:
        outputs, inputs = maps[target].weight.shape
        factors[f"{target}.A"] = torch.randn(shape.rank, inputs, generator=draw) * inputs**-0.5
        factors[f"{target}.B"] = torch.randn(outputs, shape.rank, generator=draw) * 0.01
    adapter = Adapter(encoder, shape, factors)
    embeddings = adapter.embeddings([row.text for row in rows], BATCH)
    wanted = np.asarray([[row.label == label for label in version.labels] for row in rows], dtype=np.float32)
    gram = embeddings.T @ embeddings + np.float32(RIDGE) * np.eye(encoder.dim, dtype=np.float32)
    weights = np.ascontiguousarray(np.linalg.solve(gram, embeddings.T @ wanted).T)
    both = version.with_adapted(
        "two-spaces", AdaptedHead(adapter, version.labels, weights, temperature=10.0, share=0.3)
    )
    registry = Registry(str(place))
    card = first.card(name).model_copy(update={"name": both.version, "parent": name, "kind": "lora"})
    export = Export({}, {})
    if exported(folder):
        precision = Engine.decode((folder / ENGINE_FILE).read_text(encoding="utf-8")).precision
        export = Exporter().export(both, precision, folder)
    registry.write(card, {**both.files(), **export.files}, export.shared)
    registry.promote(both.version, reason="for the benchmark", by="benchmark")


def settings_served() -> dict[str, object]:
    """What stands in the defaults that a reader of the figures wants to know."""
    tree = Settings()
    return {
        "model.max_tokens": MAX_TOKENS,
        "model.batch": tree.model.batch,
        "model.features": tree.model.features,
        "model.export": tree.model.export,
        "serving.engine": tree.serving.engine,
        "serving.max_batch": tree.serving.max_batch,
        "serving.record": tree.serving.record,
        "lora.rank": tree.lora.rank,
        "lora.layers": tree.lora.layers,
    }
