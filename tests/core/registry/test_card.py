from __future__ import annotations

import json
import math

import pytest

from perdure import __version__
from perdure.registry import Card, EncoderCard


def test_a_card_says_when_and_by_which_release_it_was_made() -> None:
    card = Card(name="v1", kind="first", encoder=EncoderCard(name="m", fingerprint="f"), labels=("a",))
    assert card.perdure == __version__
    assert card.created > 1.6e9
    fields = json.loads(card.encode())
    assert fields["schema"] == 1
    assert fields["perdure"] == __version__


def test_a_card_is_json_that_every_tool_reads_even_with_odd_numbers_in_its_verdict() -> None:
    card = Card(
        name="v1",
        kind="first",
        encoder=EncoderCard(name="m", fingerprint="f"),
        labels=("a",),
        verdict={"checks": [{"value": math.nan, "bound": math.inf}]},
    )
    data = card.encode()
    assert b"NaN" not in data
    assert b"Infinity" not in data
    read = Card.decode("v1", data)
    assert read.verdict == {"checks": [{"value": None, "bound": None}]}


@pytest.mark.parametrize("metrics", [{"acc": math.nan}, {"acc": math.inf}, {"acc": "good"}])
def test_metrics_are_numbers(metrics: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="metrics"):
        Card(name="v1", kind="first", encoder=EncoderCard(name="m", fingerprint="f"), labels=("a",), metrics=metrics)
