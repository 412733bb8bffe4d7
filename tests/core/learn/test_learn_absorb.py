from __future__ import annotations

import pytest

from perdure.config import Settings
from perdure.learn import absorb
from perdure.learn.analytic import HeadLearner
from perdure.model.encoder import Encoder


def test_sums_of_another_kind_of_features_have_another_name(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings().with_values({"model.features": 64})
    absorber = absorb.Absorber(encoder, HeadLearner(encoder, settings), settings)
    now = absorber._space()
    monkeypatch.setattr(absorb, "KIND", "another")
    assert absorber._space() != now
