"""All that is served, and what it says in float32."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

import perdure
from contestants.contest import Unavailable
from continual import code_digest
from perdure.dataset import DataRow
from servers import export, transformer, version
from servers.base import Answers
from servers.sentences import Sentences

KINDS: tuple[Answers, ...] = ("transformer", "version", "two_spaces")
MAKERS = (transformer, version)
"""What the models depend on beside the package: other code makes other ones."""


@dataclass(frozen=True, slots=True)
class Models:
    """What is served, made from the same rows, in one folder."""

    folder: Path
    transformer: Path
    export: Path
    """The exported model; there is none where `no_export` says why."""
    registry: Path
    two_spaces: Path
    no_export: str | None = None

    def answers(self, kind: Answers, texts: Sequence[str]) -> tuple[str, ...]:
        """The labels that a model gives in float32, computed once for the same texts."""
        digest = hashlib.blake2b("\0".join(texts).encode(), digest_size=6).hexdigest()
        path = self.folder / f"answers-{kind}-{digest}.json"
        if not path.is_file():
            path.write_text(json.dumps(self._computed(kind, texts)), encoding="utf-8")
        return tuple(json.loads(path.read_text(encoding="utf-8")))

    def sentences(self, texts: Sequence[str]) -> Sentences:
        """The texts with the labels of every model."""
        return Sentences(tuple(texts), {kind: self.answers(kind, texts) for kind in KINDS})

    def pieces(self, word: str) -> int:
        """Tokens of a word."""
        return len(_tokenizer(self.transformer).tokenize(word))

    def _computed(self, kind: Answers, texts: Sequence[str]) -> tuple[str, ...]:
        if kind == "transformer":
            return tuple(transformer.answers(self.transformer, texts))
        registry = self.registry if kind == "version" else self.two_spaces
        return version.loaded(registry, self.folder / "cache").scores(texts).names()


@cache
def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def made(work: Path, model: str, rows: Sequence[DataRow], *, fresh: bool = False) -> Models:
    """The models in a folder of `work` that is named for what they are made of; made where they are not there yet.

    Raises:
        Unavailable: `perdure fit` fails; with what it said.
    """
    makers = [Path(str(module.__file__)).read_text(encoding="utf-8") for module in MAKERS]
    given = [model, code_digest(perdure), makers, [(row.text, row.label) for row in rows]]
    folder = work / f"models-{hashlib.blake2b(json.dumps(given).encode(), digest_size=6).hexdigest()}"
    if fresh:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    plain = transformer.transformer(folder / "transformer", model, rows)
    fitted = version.fitted(folder / "version", model, rows)
    place, problem = folder / "export", None
    try:
        place = export.exported(place, fitted.registry)
    except Unavailable as reason:
        problem = str(reason)
    return Models(folder, plain, place, fitted.registry, fitted.two_spaces, problem)
