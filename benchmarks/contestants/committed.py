"""Runs in a committed result: what is finished there is finished, in any clone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contestants.contest import Given, Run
from contestants.figures import Figures, SessionFigures

GIVEN = ("contestant", "order", "seed", "memory", "evaluation", "settings")


def note(run: Run, folder: Path, taken: Mapping[str, Any]) -> None:
    """Writes beside a run that was just made what it was taken with: another commit may put it into the result."""
    folder.mkdir(parents=True, exist_ok=True)
    _noted(run, folder).write_text(json.dumps(dict(taken)), encoding="utf-8")


def noted(run: Run, folder: Path) -> Mapping[str, Any] | None:
    """What `note` wrote of the run; None where it was made before that was kept."""
    path = _noted(run, folder)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _noted(run: Run, folder: Path) -> Path:
    return folder / f"{run.given.name}.taken.json"


def packed(right: str | None) -> dict[str, Any] | None:
    """Answers of a run (1 for each row that was right, else 0) as a number in base 16, and how many they are."""
    return {"rows": len(right), "bits": f"{int(right, 2):x}"} if right else None


def unpacked(fields: Mapping[str, Any] | None) -> str | None:
    """What `packed` packed."""
    return f"{int(fields['bits'], 16):0{fields['rows']}b}" if fields else None


def told(run: Run, taken: Mapping[str, Any]) -> dict[str, Any]:
    """A finished run as the result holds it.

    Args:
        run: with figures.
        taken: what it was taken with: the commit, the threads.
    """
    assert run.figures is not None
    return {
        **{name: getattr(run.given, name) for name in GIVEN},
        "settings": dict(run.given.settings),
        "figures": asdict(run.figures),
        "sessions": [asdict(one) for one in run.sessions],
        "right": packed(run.right),
        "note": run.note,
        "taken": dict(taken),
    }


class Committed:
    """The finished runs of a result.

    Args:
        path: the result; where there is none, there are no runs.
    """

    def __init__(self, path: Path) -> None:
        fields = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
        self._fields: list[dict[str, Any]] = fields
        self.runs = tuple(_run(one) for one in fields)

    def taken(self, run: Run) -> Mapping[str, Any] | None:
        """What the run was taken with; None where it is not one of these."""
        place = next((index for index, one in enumerate(self.runs) if one == run), None)
        return None if place is None else self._fields[place]["taken"]


def _run(fields: Mapping[str, Any]) -> Run:
    sessions = tuple(SessionFigures(**{**one, "accuracies": tuple(one["accuracies"])}) for one in fields["sessions"])
    return Run(
        Given(**{name: fields[name] for name in GIVEN}),
        Figures(**fields["figures"]),
        sessions,
        unpacked(fields["right"]),
        fields["note"],
    )
