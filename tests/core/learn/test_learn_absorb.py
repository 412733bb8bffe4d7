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
        self._deltas, self._name = tuple(deltas), ""

    def statistics(self) -> str | None:
        return self._name or None

    def statistics_parts(self) -> Sequence[str]:
        return ()

    def deltas(self, limit: int) -> tuple[Delta, ...]:
        return () if self._name else self._deltas[:limit]

    def set_statistics(self, name: str, *, through: int) -> None:
        self._name = name


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
