"""The benchmark of training compares like with like."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import training
from perdure.config import LoraSettings
from perdure.learn.lora import LoraLearner, TrainingSet
from perdure.model.encoder import load_encoder


def run(seconds: float, loss: float = 0.5) -> training.Run:
    return training.Run(seconds, 100 / seconds, 50 / seconds, 25 / seconds, loss, 0.75)


def test_ratios_are_of_medians_and_say_where_perdure_loses() -> None:
    runs = {
        training.OURS: [run(1.0), run(2.0), run(9.0)],
        training.TRAINER: [run(6.0), run(8.0), run(7.0)],
        training.CAREFUL: [run(1.0)],
    }
    found = training.summary(runs)
    assert found["contestants"][training.OURS]["seconds"] == 2.0
    assert len(found["contestants"][training.OURS]["runs"]) == 3
    assert found["ratios"] == {
        "perdure / trainer, by the clock": 3.5,
        "perdure / trainer, by CPU": 3.5,
        "perdure / trainer, whole, by the clock": 3.5,
        "perdure / trainer, careful, by the clock": 0.5,
        "perdure / trainer, careful, by CPU": 0.5,
        "perdure / trainer, careful, whole, by the clock": 0.5,
    }


def test_rows_are_made_up_where_there_are_none(tmp_path: Path) -> None:
    rows = training.load_rows(tmp_path, 100)
    assert rows.source == "made up"
    assert (len(rows.train), len(rows.held_out), len(rows.labels)) == (100, training.HELD_OUT, 50)
    assert rows == training.load_rows(tmp_path, 100)
    assert not {text for text, _ in rows.train} & {text for text, _ in rows.held_out}


@pytest.mark.parametrize("careful", [False, True])
def test_the_trainer_trains_what_perdure_trains(tiny_encoder: Path, careful: bool) -> None:
    words = {"card": "card stolen limit broken", "login": "password login reset account", "parcel": "parcel late lost"}
    fillers = ("where is my", "please", "i want to", "can you", "the", "help", "not work", "do")
    pairs = [
        (f"{filler} {first} {second}", label)
        for label, all_of_it in words.items()
        for filler in fillers
        for first, second in combinations(all_of_it.split(), 2)
    ]
    order = np.random.default_rng(0).permutation(len(pairs))
    shuffled = [pairs[row] for row in order]
    rows = training.Rows("made up", tuple(shuffled[:80]), tuple(shuffled[80:]))
    settings = LoraSettings(rank=2, layers=2, batch=16, epochs=6, learning_rate=5e-3, precision="float32")
    encoder = load_encoder(str(tiny_encoder), max_tokens=128, adapted_layers=2)
    texts, labels = zip(*rows.train, strict=True)
    data = TrainingSet(texts, labels, len(texts))
    head = training.started_head(encoder, settings, data)
    theirs = training.trainers(encoder, str(tiny_encoder), settings, rows, head, 0, careful=careful)
    mine = training.ours(encoder, settings, data, None, rows, 0)
    trained = LoraLearner(encoder, settings, seed=0).train(data, None).network
    model = training.adapted(encoder, str(tiny_encoder), settings, head)
    assert sorted(one.shape for one in model.parameters() if one.requires_grad) == sorted(
        parameter.shape for parameter in trained.parameters()
    )
    # Another order of the rows and another start of A, but the same problem.
    assert max(theirs.loss, mine.loss) < 0.4
    assert abs(theirs.accuracy - mine.accuracy) < 0.15
    assert mine.whole_samples_per_second < mine.samples_per_second == pytest.approx(480 / mine.seconds)
    assert theirs.samples_per_second == pytest.approx(480 / theirs.seconds)


def test_the_trainers_model_answers_as_perdures_does(tiny_encoder: Path) -> None:
    from transformers import AutoModel

    encoder = load_encoder(str(tiny_encoder), max_tokens=128, adapted_layers=2)
    head = torch.randn(5, 32, generator=torch.Generator().manual_seed(1))
    model = training.Classifier(AutoModel.from_pretrained(tiny_encoder).eval(), head)
    tokens = encoder.tokens(["where is my parcel", "card", "please refund the order"])
    trunk = encoder.trunk(tokens)
    longest = trunk.mask.shape[1]
    ids = torch.tensor([one + [0] * (longest - len(one)) for one in tokens])
    with torch.no_grad():
        found = model(ids, trunk.mask)["logits"]
        wanted = training.HEAD_SCALE * trunk.embed(encoder.top) @ head.T
    np.testing.assert_allclose(found, wanted, atol=1e-4)
