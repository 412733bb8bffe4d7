from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from perdure.config import LoraSettings, Settings
from perdure.learn.lora import LoraLearner, TrainingSet, Update
from perdure.learn.network import Network, Origin
from perdure.learn.processes import Processes
from perdure.learn.replicas import ROWS_WORTH_A_THREAD, Replicas, gradients_of
from perdure.model.encoder import Encoder

LABELS = ("card", "login", "parcel")
CPU = torch.device("cpu")
THREADS = 3


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def data(requests: Callable[..., list[tuple[str, str]]]) -> TrainingSet:
    pairs = requests(LABELS, 9)
    order = np.random.default_rng(0).permutation(len(pairs))
    texts, labels = tuple(pairs[row][0] for row in order), tuple(pairs[row][1] for row in order)
    return TrainingSet(texts, labels, len(texts))


@pytest.fixture
def lora(settings: Settings) -> LoraSettings:
    return LoraSettings.model_validate({**settings.lora.model_dump(), "precision": "float32", "distillation": 0.5})


@pytest.fixture
def network(encoder: Encoder, lora: LoraSettings, data: TrainingSet) -> Network:
    made = Network(encoder, lora, data, torch.float32, Processes())
    made.start_head(None)
    made.listen(Origin(made.shape, {}, LABELS[:2], None))
    with torch.no_grad():
        # B starts at 0, where the gradient of A is 0 as well.
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    return made


def summed(network: Network, batch: list[int], lora: LoraSettings, rows: int) -> Tensor:
    """Gradients and loss of a step whose replicas are made for batches of `rows`."""
    into = torch.full((sum(one.numel() for one in network.parameters()) + 1,), torch.nan)
    with Replicas(network, rows, CPU) as replicas:
        replicas.sum_gradients(batch, lora, into)
    return into


@pytest.mark.parametrize("rows", [27, 5, 2, 1])
def test_gradients_of_the_parts_add_up_to_those_of_the_whole(
    rows: int, network: Network, lora: LoraSettings, threads: Callable[[int], None]
) -> None:
    batch = list(range(rows))
    threads(1)
    whole = summed(network, batch, lora, 32)
    threads(THREADS)
    parts = summed(network, batch, lora, 32)
    assert whole[-1] > 0
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-6)


def test_the_gradients_are_those_of_the_loss(network: Network, lora: LoraSettings, data: TrainingSet) -> None:
    """By finite differences along the gradient: nobody else's derivation is taken on trust."""
    batch = list(range(len(data.texts)))
    found = summed(network, batch, lora, 32)
    step = 1e-2 * found[:-1] / found[:-1].norm()
    pieces = torch.split(step, [one.numel() for one in network.parameters()])

    def moved(sign: float) -> float:
        with torch.no_grad():
            for parameter, piece in zip(network.parameters(), pieces, strict=True):
                parameter.add_(sign * piece.view_as(parameter))
        return float(summed(network, batch, lora, 32)[-1])

    up, down = moved(1), moved(-2)
    assert (up - down) / 2e-2 == pytest.approx(float(found[:-1].norm()), rel=2e-2)


def test_replicas_see_what_the_optimiser_writes(network: Network, lora: LoraSettings) -> None:
    into = torch.zeros(sum(one.numel() for one in network.parameters()) + 1)
    with Replicas(network, 32, CPU) as replicas:
        replicas.sum_gradients([0, 1, 2], lora, into)
        before = float(into[-1])
        with torch.no_grad():
            network.head.mul_(2)
        replicas.sum_gradients([0, 1, 2], lora, into)
    assert float(into[-1]) != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize(
    ("available", "batch", "device", "used"),
    [
        (1, 64, "cpu", 1),
        (3, 24, "cpu", 3),
        (3, 23, "cpu", 2),
        (3, ROWS_WORTH_A_THREAD - 1, "cpu", 1),
        (2, 512, "cpu", 2),
        (3, 512, "cuda", 1),
    ],
)
def test_a_thread_is_only_started_for_rows_enough(
    available: int,
    batch: int,
    device: str,
    used: int,
    network: Network,
    lora: LoraSettings,
    threads: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads(available)
    made: list[object] = []
    monkeypatch.setattr(network, "replica", lambda: made.append(object()) or made[-1])
    with Replicas(network, batch, torch.device(device)):
        names = [thread.name for thread in threading.enumerate()]
        assert len(made) == used
        assert sum(name.startswith("replica") for name in names) == (used if used > 1 else 0)
        assert torch.get_num_threads() == available
    assert not any(thread.name.startswith("replica") for thread in threading.enumerate())


def test_pytorchs_threads_are_divided(
    network: Network, lora: LoraSettings, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(5)
    found: set[tuple[str, int]] = set()
    loss = network.loss

    def seen(*given: object) -> Tensor:
        found.add((threading.current_thread().name, torch.get_num_threads()))
        return loss(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(network, "loss", seen)
    into = torch.zeros(sum(one.numel() for one in network.parameters()) + 1)
    with Replicas(network, 2 * ROWS_WORTH_A_THREAD, CPU) as replicas:
        for _ in range(8):
            replicas.sum_gradients(list(range(12)), lora, into)
    assert {count for _, count in found} == {2}
    assert all(name.startswith("replica") for name, _ in found)
    assert torch.get_num_threads() == 5


def test_an_error_in_a_thread_is_the_callers(
    network: Network, lora: LoraSettings, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    threads(2)

    def broken(*_: object) -> Tensor:
        raise RuntimeError("no memory")

    monkeypatch.setattr(network, "loss", broken)
    with pytest.raises(RuntimeError, match="no memory"), Replicas(network, 32, CPU) as replicas:
        replicas.sum_gradients([0, 1, 2], lora, torch.zeros(1))


def test_an_update_comes_out_the_same_each_time_and_nearly_the_same_for_any_number_of_threads(
    encoder: Encoder, lora: LoraSettings, data: TrainingSet, threads: Callable[[int], None]
) -> None:
    wide = lora.model_copy(update={"batch": THREADS * ROWS_WORTH_A_THREAD})

    def update(count: int) -> Update:
        threads(count)
        return LoraLearner(encoder, wide, seed=3, device="cpu").update(data, None)

    once, again, alone = update(THREADS), update(THREADS), update(1)
    assert all(torch.equal(once.weights[name], again.weights[name]) for name in once.weights)
    assert once.loss == again.loss
    for name in once.weights:
        torch.testing.assert_close(once.weights[name], alone.weights[name], rtol=1e-3, atol=1e-4)


def test_gradients_lie_in_one_piece() -> None:
    one, other = torch.zeros(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)
    gradients = gradients_of([one, other])
    (2 * one.sum() + 3 * other.sum()).backward()
    assert gradients.tolist() == [2.0] * 6 + [3.0] * 4 + [0.0]
