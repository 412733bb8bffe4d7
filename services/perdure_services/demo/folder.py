"""The demo's folder: what lies where, under which settings, and who may use it."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from perdure.config import Settings, load_settings
from perdure.errors import StoreBusy, UsageError
from perdure_services.demo.progress import FILE as PROGRESS_FILE
from perdure_services.demo.scenario import Scenario

OWN = ("stream.url", "registry.url", "memory.path")
"""Settings that the demo makes itself."""

MADE = (
    PROGRESS_FILE, "settings.yaml", "session-0.jsonl", "stream.db", "stream.db-wal", "stream.db-shm", "registry",
    "memory", "logs", "cache", "var", "versions", "report.html", "demo.json", "accuracy.svg", "accuracy.png",
)  # fmt: skip
"""Everything that the demo writes; `fresh` removes nothing else."""

PRODUCT = {
    # The trainer starts a turn by itself in each wave, when most of it has come.
    "trainer.min_new_labels": 80,
    # Fewer than the waves bring, so that memory has to choose, and a turn stays short.
    "memory.per_class": 20,
    # Two passes instead of three: somebody is watching.
    "lora.epochs": 2,
    "model.features": 4096,
    # Any free port.
    "serving.port": 0,
}
"""What the demo sets differently; everything else is as in production."""


class DemoFolder:
    """The folder `path`, held by one demo at a time.

    Raises:
        UsageError: it cannot be written.
        StoreBusy: another demo runs in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(path / "demo.lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise UsageError(f"cannot write to {path}: {error.strerror or error}; give another --out") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._lock)
            raise StoreBusy(f"another demo runs in {path}: end it (Ctrl-C), or give another --out") from error

    def fresh(self) -> None:
        """Removes what an earlier demo wrote."""
        for name in MADE:
            path = self.path / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def settings(self, overrides: Sequence[str]) -> Settings:
        """The demo's settings under `overrides`. The environment has no say: it may be about something real.

        Raises:
            SettingError: a setting is unknown or out of range.
            UsageError: a setting is the demo's own.
        """
        for override in overrides:
            if (name := override.partition("=")[0].strip()) in OWN:
                raise UsageError(f"--set {name} cannot be changed: the demo keeps everything in --out")
        root = self.path.resolve()
        ours = {
            **PRODUCT,
            "stream.url": f"sqlite:{root / 'stream.db'}",
            "registry.url": str(root / "registry"),
            "memory.path": str(root / "memory"),
        }
        settings = load_settings(
            None, [*(f"{name}={json.dumps(value)}" for name, value in ours.items()), *overrides], {}
        )
        if Path(settings.model.name).is_dir():
            # The processes run in the demo's folder, where a relative path would lead elsewhere.
            settings = settings.with_values({"model.name": str(Path(settings.model.name).resolve())})
        return settings

    def write(self, settings: Settings, scenario: Scenario) -> tuple[Path, Path]:
        """Writes the settings' file and the data that version 1 is fitted from; where they are."""
        config, data = self.path / "settings.yaml", self.path / "session-0.jsonl"
        _replace(config, yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False))
        rows = ({"text": row.text, "label": row.label, "id": f"opening-{n}"} for n, row in enumerate(scenario.opening))
        _replace(data, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return config, data

    def close(self) -> None:
        """Lets another demo have it."""
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def identity(settings: Settings, scenario: Scenario) -> dict[str, Any]:
    """What a demo is of: data and settings, but not where it lies, nor its port."""
    tree = settings.with_values({**dict.fromkeys(OWN, ""), "serving.port": 0}).model_dump(mode="json")
    return {"data": scenario.digest, "settings": tree}


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
