from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from perdure.config import Settings
from perdure.learn import absorb
from perdure.learn.analytic import HeadLearner
from perdure.learn.material import Encodings
from perdure.memory import Delta, Memory
from perdure.model.classifier import Encoded
from perdure.model.encoder import Encoder, Trunk
from perdure.model.head import Statistics


def test_sums_of_another_kind_of_features_have_another_name(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings().with_values({"model.features": 64})
    absorber = absorb.Absorber(encoder, HeadLearner(encoder, settings), settings)
    now = absorber._space()
    monkeypatch.setattr(absorb, "KIND", "another")
    assert absorber._space() != now


class Waiting:
    """A memory of which only the labels that wait are asked."""

    def __init__(self, folder: Path, deltas: Sequence[Delta]) -> None:
        self.folder, self.rebuild_due = str(folder), False
        self._deltas, self._name, self._told = tuple(deltas), "", False

    def statistics(self) -> str | None:
        return self._name or None

    def tell(self, deltas: Sequence[Delta]) -> None:
        self._deltas, self._told = tuple(deltas), False

    def statistics_parts(self) -> Sequence[str]:
        return ()

    def deltas(self, limit: int) -> tuple[Delta, ...]:
        return () if self._told else self._deltas[:limit]

    def set_statistics(self, name: str, *, through: int) -> None:
        self._name, self._told = name, True


def test_texts_that_the_turn_holds_are_not_encoded_again(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings().with_values({"model.features": 64, "model.batch": 4})
    deltas = [Delta(place, f"where is parcel {place}", "parcel", 1) for place in range(6)]
    encodings = Encodings(encoder, None, 4)
    held = encodings([delta.text for delta in deltas[:5]])
    found = []
    for name, given in (("own", None), ("shared", encodings)):
        (tmp_path / name).mkdir()
        encoded: list[int] = []
        trunk = encoder.trunk

        def counted(tokens: Sequence[Sequence[int]], **rest: Any) -> Trunk:
            encoded.append(len(tokens))  # noqa: B023
            return trunk(tokens, **rest)  # noqa: B023

        with monkeypatch.context() as patch:
            patch.setattr(encoder, "trunk", counted)
            absorber = absorb.Absorber(encoder, HeadLearner(encoder, settings), settings)
            found.append(absorber.absorb(cast("Memory", Waiting(tmp_path / name, deltas)), given))
        assert sum(encoded) == {"own": 6, "shared": 1}[name]
    assert found[0].gram.tobytes() == found[1].gram.tobytes()
    assert found[0].counts == found[1].counts == {"parcel": 6}
    assert np.array_equal(held.features, encodings([delta.text for delta in deltas]).features[:5])


def test_a_long_page_is_not_kept_for_the_turn(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings().with_values({"model.features": 64, "model.batch": 4})
    monkeypatch.setattr(absorb, "KEPT_ROWS", 3)
    deltas = [Delta(place, f"parcel {place}", "parcel", 1) for place in range(4)]

    def kept(texts: Sequence[str]) -> Encoded:
        raise AssertionError(f"{len(texts)} texts were kept")

    absorber = absorb.Absorber(encoder, HeadLearner(encoder, settings), settings)
    assert absorber.absorb(cast("Memory", Waiting(tmp_path, deltas)), cast("Encodings", kept)).rows == 4


def test_sums_are_read_once_in_a_process_and_are_those_of_the_file(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings().with_values({"model.features": 64, "model.batch": 4})
    memory = Waiting(tmp_path, [Delta(0, "where is my parcel", "parcel", 1)])
    absorber = absorb.Absorber(encoder, HeadLearner(encoder, settings), settings)
    absorber.absorb(cast("Memory", memory))
    read: list[Path] = []
    load = Statistics.load

    def counted(path: Path) -> Statistics:
        read.append(path)
        return load(path)

    monkeypatch.setattr(Statistics, "load", counted)
    memory.tell([Delta(1, "money back", "refund", 1)])
    here = absorber.absorb(cast("Memory", memory))
    assert read == []
    again = absorb.Absorber(encoder, HeadLearner(encoder, settings), settings).absorb(cast("Memory", memory))
    assert len(read) == 1
    assert here.gram.tobytes() == again.gram.tobytes()
    assert here.counts == again.counts == {"parcel": 1, "refund": 1}


def test_a_turn_that_failed_leaves_no_half_changed_sums(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings().with_values({"model.features": 64, "model.batch": 4})
    memory = Waiting(tmp_path, [Delta(0, "where is my parcel", "parcel", 1)])
    absorber = absorb.Absorber(encoder, HeadLearner(encoder, settings), settings)
    absorber.absorb(cast("Memory", memory))
    memory.tell([Delta(1, "money back", "refund", 1)])
    with monkeypatch.context() as patch:
        patch.setattr(Statistics, "save", lambda _self, _path: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            absorber.absorb(cast("Memory", memory))
    assert absorber.absorb(cast("Memory", memory)).counts == {"parcel": 1, "refund": 1}
