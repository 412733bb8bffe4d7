"""A turn that is killed anywhere and run again ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

from perdure.records import Erasure, Feedback, Interaction
from perdure.turn import TurnResult

EVERY_STAGE = [
    "ingest",
    "freeze",
    "statistics",
    "statistics written",
    "remember",
    "gate",
    "learn challenger",
    "judge challenger",
    "promote challenger",
    "learn head",
    "judge head",
    "promote head",
    "learn lora",
    "judge lora",
    "promote lora",
    "finish",
]
EASY = {
    "judge.confidence": 0.51,
    "judge.margin": 1.0,
    "judge.negative_flips": 1.0,
    "judge.calibration": 1.0,
    "judge.prediction_shift": 1.0,
    "judge.min_rows": 2,
    # Evidently's report takes longer than the rest of the turn, and has tests of its own.
    "judge.drift_min_rows": 10_000,
    "gate.known": 1.0,
    "gate.confident": 0.4,
    "gate.neighbours": 3,
    "lora.epochs": 3,
    "lora.learning_rate": 4e-2,
}
"""So that LoRA has something to learn, and everything that it makes is let through."""

BLURRED = {
    "model.features": 64,
    "model.export": "none",
    "model.bandwidth": 20.0,
    "memory.holdout_share": 0.4,
    "lora.shares": [0.9],
    "lora.epochs": 6,
    "lora.learning_rate": 1e-2,
}
"""So that the head is bad, the adapter is better, and there are rows enough to prove it."""

ONE_THREAD = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # The allocator that pandas may bring along.
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}

MODEL_FILES = ("model.json", "head.safetensors", "adapter.safetensors", "leverage.safetensors", "ewc.safetensors")


@dataclass(frozen=True)
class Ended:
    """What must not depend on a kill."""

    champion: str
    promotions: tuple[tuple[int, str, str, str], ...]
    versions: dict[str, dict[str, str]]
    digest: str
    statistics: bytes
    rows: int
    counts: dict[str, int]
    summaries: tuple[Any, ...]
    quarantined: tuple[tuple[str, str | None], ...]
    memory: dict[str, Any]


def ended(desk: Any) -> Ended:
    registry = desk.registry()
    statistics = desk.statistics()
    with desk.memory() as memory:
        counts = asdict(memory.counts())
        # Pages of a database that was killed may be split otherwise.
        del counts["memory_bytes"]
        results = [TurnResult.decode(text) for text in memory.history(10)]
        return Ended(
            champion=registry.champion().version,
            promotions=tuple((one.number, one.version, one.by, one.reason) for one in registry.promotions()),
            versions={
                name: {file: card.sha256 for file, card in registry.card(name).files.items() if file in MODEL_FILES}
                for name in registry.versions()
            },
            digest=memory.digest(),
            statistics=desk.statistics_file(memory).read_bytes(),
            rows=statistics.rows,
            counts=dict(statistics.counts),
            summaries=tuple(
                (one.number, one.champion_before, one.champion, one.gate, one.drifted, one.drift, fates(one))
                for one in results
            ),
            quarantined=tuple((one.id, one.label) for one in memory.quarantined()),
            memory=counts,
        )


def fates(result: TurnResult) -> tuple[tuple[str, str, str, str], ...]:
    return tuple((one.version, one.kind, one.outcome, one.sentence) for one in result.candidates)


def prepare(desk: Any, sentences: Callable[..., list[str]], *, undecided: bool) -> Counter[str]:
    """A desk with one finished turn and a second one to run; the labels that its statistics must hold at the end.

    Args:
        desk: an empty one.
        sentences: makes texts of a label.
        undecided: the first turn leaves a challenger behind, which no erasure ends.
    """
    first = {label: sentences(label, 25) for label in ("refund", "parcel", "login")}
    for label, said in first.items():
        desk.send([(text, label) for text in said], name=f"first-{label}", subject="ann" if label == "login" else None)
    desk.turn(**({"judge__min_rows": 1000} if undecided else {}))
    # New rows of old labels and a new one, some of them wrong, some unlabelled, some repeated.
    second = {label: sentences(label, 25, seed=1) for label in ("refund", "parcel", "card")}
    for label, said in second.items():
        desk.send([(text, label) for text in said], name=f"second-{label}", at=1000.0)
    wrong = desk.send([(text, "login") for text in sentences("refund", 6, seed=2)], name="wrong", at=1100.0)
    desk.send([(text, None) for text in sentences("parcel", 8, seed=3)], name="unlabelled", at=1200.0)
    desk.send([(text, "refund") for text in first["refund"][:5]], name="first-refund")
    desk.record(
        [
            # A label before its prediction, a label that was corrected, one said twice, and one that nobody waits for.
            Feedback(time=1300.0, interaction="early", label="card"),
            Interaction(time=1301.0, id="early", text="where is my card"),
            Feedback(time=1302.0, interaction="first-parcel-0003", label="refund"),
            Feedback(time=1303.0, interaction="first-parcel-0004", label="parcel"),
            Feedback(time=1304.0, interaction="nobody", label="card"),
            Interaction(time=1305.0, id="bob-1", text="please change my phone", subject="bob"),
            Feedback(time=1306.0, interaction="bob-1", label="card"),
            # One that the statistics hold already, and one that they do not.
            Interaction(time=1307.0, id="carl-1", text="my parcel is late", subject="carl"),
            Feedback(time=1308.0, interaction="carl-1", label="parcel"),
            *([] if undecided else [Erasure(time=1400.0, subject="carl"), Erasure(time=5.5, subject="ann")]),
        ]
    )
    expected = Counter({label: len(said) for label, said in first.items()})
    expected.update({label: len(said) for label, said in second.items()})
    expected.update({"card": 2, "refund": 1, "parcel": -1, "login": len(wrong) - 6})
    return expected


@pytest.mark.timeout(280)
@pytest.mark.parametrize(
    ("promoted", "values", "begin"),
    # Up to the first verdict all do the same.
    [
        (("head",), {}, "ingest"),
        (("head", "lora"), BLURRED, "judge head"),
        (("challenger",), BLURRED, "learn challenger"),
    ],
)
def test_a_turn_killed_at_any_stage_ends_as_an_undisturbed_one(tmp_path, desk_at, sentences, promoted, values, begin):
    easy = {**EASY, **values}
    base = desk_at(tmp_path / "base", **easy)
    undecided = "challenger" in promoted
    expected = prepare(base, sentences, undecided=undecided)
    if undecided:
        # The six of Ann's and the one of Carl's are not taken out.
        expected.update({"login": 6, "parcel": 1})
    settings = base.settings.model_dump_json().replace(str(tmp_path / "base"), "{folder}")
    (tmp_path / "settings.json").write_text(settings, encoding="utf-8")
    out = tmp_path / "killed"
    out.mkdir()
    script = Path(__file__).with_name("killed_turns.py")
    ran = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "settings.json"), str(base.folder), str(out), begin],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **ONE_THREAD},
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    events = told["stages"]
    stages = list(dict.fromkeys(events))
    steps = EVERY_STAGE if undecided else [stage for stage in EVERY_STAGE if not stage.endswith("challenger")]
    assert stages == [stage for stage in steps if not stage.startswith("promote") or stage.endswith(promoted)]
    assert events.count("ingest") >= 4, "the stream should be read in several pages"

    undisturbed = ended(desk_at(out / "whole", **easy))
    # The undisturbed turn is what it is meant to be, so that equality with it says something.
    assert undisturbed.champion == f"v000002-{promoted[-1]}"
    assert [number for number, *_ in undisturbed.promotions] == list(range(1, len(undisturbed.promotions) + 1))
    assert "adapter.safetensors" in undisturbed.versions["v000002-lora"]
    assert any(name.startswith("wrong") for name, _ in undisturbed.quarantined)
    assert undisturbed.counts == dict(expected)
    assert undisturbed.memory["fresh"] == 0
    for number, stage in list(enumerate(events))[told["first"] :]:
        disturbed = ended(desk_at(out / str(number), **easy))
        for part in Ended.__dataclass_fields__:
            assert getattr(disturbed, part) == getattr(undisturbed, part), f"{part}, killed at {number}: {stage}"
