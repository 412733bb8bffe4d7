"""What came out of one turn."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class CandidateResult:
    """One candidate's fate."""

    version: str
    kind: str
    outcome: str
    """`promote`, `keep` or `inconclusive`; `stale` when somebody else promoted meanwhile."""
    sentence: str
    seconds: float
    """Wall time to make and judge it."""
    cpu_seconds: float


@dataclass(frozen=True, slots=True)
class TurnResult:
    """One turn of the loop, told afterwards."""

    number: int
    champion_before: str | None
    champion: str | None
    candidates: tuple[CandidateResult, ...] = ()
    gate: Mapping[str, int] = field(default_factory=dict)
    """How many rows were learned, skipped, put into quarantine, pseudo-labelled and ignored."""
    ingested: Mapping[str, int] = field(default_factory=dict)
    drifted: bool = False
    drift: str = ""
    note: str = ""
    """Why there was no candidate, where there was none."""
    wall_seconds: float = 0.0
    cpu_seconds: float = 0.0
    promotion: int = 0
    """The number that a promotion of it would have first, fixed when it read its champion."""

    @property
    def promoted(self) -> bool:
        """A new champion came out of it."""
        return any(one.outcome == "promote" for one in self.candidates)

    @property
    def empty(self) -> bool:
        """There was nothing to learn from, and no turn was used up."""
        return not self.candidates and not self.gate

    def to_json(self) -> dict[str, Any]:
        """JSON types only."""
        return asdict(self)

    def line(self) -> str:
        """One line for the log."""
        gate = ", ".join(f"{name} {count}" for name, count in self.gate.items() if count) or "no rows"
        fates = "; ".join(f"{one.version} {one.outcome} in {one.seconds:.1f} s" for one in self.candidates)
        return (
            f"turn {self.number}: {gate}; {fates or self.note or 'nothing to learn'}; serving {self.champion or 'none'}"
        )

    @classmethod
    def decode(cls, text: str) -> TurnResult:
        """The result that `json.dumps(result.to_json())` made."""
        fields = json.loads(text)
        fields["candidates"] = tuple(CandidateResult(**one) for one in fields["candidates"])
        return cls(**fields)
