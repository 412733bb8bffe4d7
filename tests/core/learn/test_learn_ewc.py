from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from perdure.learn.ewc import EXACT_CLASSES, Anchor, decayed_sum, fisher_information


def linear(classes: int, inputs: int = 5, seed: int = 0) -> nn.Linear:
    layer = nn.Linear(inputs, classes, bias=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(classes, inputs, generator=generator))
    return layer


def fisher_of(layer: nn.Linear, rows: Tensor, batch: int, seed: int = 0) -> tuple[Tensor, int]:
    def forward(part: Tensor) -> tuple[Tensor, Tensor]:
        return layer(part), torch.ones(len(part), dtype=torch.bool)

    found, samples = fisher_information(
        {"head": layer}, torch.split(rows, batch), forward, generator=torch.Generator().manual_seed(seed)
    )
    return found["head"], samples


def oracle(layer: nn.Linear, rows: Tensor) -> Tensor:
    """Fisher of W_kj for a linear softmax: the mean over samples of p_k(1−p_k)·x_j²."""
    p = torch.softmax(layer(rows), dim=1).detach()
    return torch.einsum("nk,nj->kj", p * (1 - p), rows**2) / len(rows)


# ── Fisher information ──
@pytest.mark.parametrize("classes", [2, 5, EXACT_CLASSES])
def test_a_linear_softmax_has_the_fisher_information_of_the_formula(classes: int) -> None:
    layer, rows = linear(classes), torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    found, samples = fisher_of(layer, rows, batch=16)
    assert samples == 40
    torch.testing.assert_close(found, oracle(layer, rows), rtol=1e-4, atol=1e-6)


def test_with_many_classes_drawn_labels_come_near_the_formula() -> None:
    layer = linear(EXACT_CLASSES + 4)
    rows = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    many = rows.repeat(400, 1)
    found, samples = fisher_of(layer, many, batch=1000)
    wanted = oracle(layer, rows)
    assert samples == 8000
    large = wanted > wanted.median()
    assert float(((found - wanted).abs() / wanted)[large].max()) < 0.15
    assert not torch.equal(fisher_of(layer, rows, 20, seed=0)[0], fisher_of(layer, rows, 20, seed=1)[0])
    assert torch.equal(fisher_of(layer, rows, 20, seed=0)[0], fisher_of(layer, rows, 20, seed=0)[0])


@pytest.mark.parametrize("batch", [1, 3, 40])
def test_the_size_of_a_batch_does_not_matter(batch: int) -> None:
    layer, rows = linear(4), torch.randn(40, 5, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(fisher_of(layer, rows, batch)[0], fisher_of(layer, rows, 7)[0], rtol=1e-5, atol=1e-7)


def test_rows_that_do_not_count_leave_no_trace() -> None:
    layer, rows = linear(4), torch.randn(10, 5, generator=torch.Generator().manual_seed(1))

    def forward(part: Tensor) -> tuple[Tensor, Tensor]:
        return layer(part), torch.arange(10) < 6

    found, samples = fisher_information({"head": layer}, [rows], forward, generator=torch.Generator())
    assert samples == 6
    torch.testing.assert_close(found["head"], oracle(layer, rows[:6]), rtol=1e-4, atol=1e-6)


def test_maps_on_tokens_sum_over_the_tokens_of_a_sample_before_they_square() -> None:
    layer, out = linear(3, 5), linear(4, 3, seed=2)
    tokens = torch.randn(6, 7, 5, generator=torch.Generator().manual_seed(1))

    def forward(part: Tensor) -> tuple[Tensor, Tensor]:
        return out(torch.tanh(layer(part)).mean(dim=1)), torch.ones(len(part), dtype=torch.bool)

    found, _ = fisher_information({"map": layer}, torch.split(tokens, 4), forward, generator=torch.Generator())
    wanted = torch.zeros(3, 5)
    for one in tokens:
        logarithms = torch.log_softmax(forward(one.unsqueeze(0))[0], dim=1)[0]
        for label in range(4):
            (gradient,) = torch.autograd.grad(logarithms[label], layer.weight, retain_graph=True)
            wanted += logarithms[label].exp().detach() * gradient**2 / 6
    torch.testing.assert_close(found["map"], wanted, rtol=1e-4, atol=1e-7)


def test_hooks_are_gone_afterwards_even_when_forward_fails() -> None:
    layer, rows = linear(4), torch.randn(3, 5)

    def forward(part: Tensor) -> tuple[Tensor, Tensor]:
        layer(part)
        raise RuntimeError("forward failed")

    fisher_of(layer, rows, 3)
    with pytest.raises(RuntimeError, match="forward failed"):
        fisher_information({"head": layer}, [rows], forward, generator=torch.Generator())
    assert not layer._forward_hooks


# ── the penalty ──
def anchor_of(theta: list[list[float]], fisher: list[list[float]]) -> Anchor:
    return Anchor({"head": torch.tensor(theta)}, {"head": torch.tensor(fisher)}, samples=10)


def test_penalty_and_gradient_are_those_of_the_formula() -> None:
    anchor = anchor_of([[1.0, 2.0], [0.0, -1.0]], [[0.5, 0.0], [4.0, 1.0]])
    theta = torch.tensor([[3.0, 7.0], [1.0, -1.5]], requires_grad=True)
    penalty = anchor.penalty({"head": theta})
    penalty.backward()  # type: ignore[no-untyped-call]
    # ½·(0.5·2² + 0·5² + 4·1² + 1·0.5²)
    assert penalty.item() == pytest.approx(3.125)
    assert theta.grad is not None
    assert theta.grad.tolist() == [[1.0, 0.0], [4.0, -0.5]]


def test_at_the_anchor_the_penalty_is_0() -> None:
    anchor = anchor_of([[1.0, 2.0]], [[3.0, 4.0]])
    assert float(anchor.penalty(anchor.theta)) == 0


def test_a_grown_anchor_moves_its_rows_and_leaves_new_ones_free() -> None:
    anchor = anchor_of([[1.0, 2.0], [3.0, 4.0]], [[1.0, 1.0], [2.0, 2.0]])
    grown = anchor.grown("head", [2, 0], rows=4)
    assert grown.theta["head"].tolist() == [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0], [0.0, 0.0]]
    assert grown.fisher["head"].tolist() == [[2.0, 2.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    assert grown.samples == 10
    theta = grown.theta["head"].clone()
    theta[[1, 3]] = 100.0
    assert float(grown.penalty({"head": theta})) == 0
    theta[2, 0] = 5.0
    assert float(grown.penalty({"head": theta})) == pytest.approx(0.5 * 1.0 * 4.0**2)
    assert anchor.theta["head"].shape == (2, 2)


def test_a_head_that_only_gained_rows_at_the_end_is_held_as_it_is() -> None:
    anchor = anchor_of([[1.0, 2.0]], [[1.0, 1.0]])
    assert float(anchor.penalty({"head": torch.tensor([[1.0, 4.0], [9.0, 9.0]])})) == pytest.approx(2.0)


def test_fisher_information_decays_and_adds_up() -> None:
    before = {"a": torch.tensor([2.0, 4.0]), "only before": torch.tensor([10.0])}
    new = {"a": torch.tensor([1.0, 0.0]), "only new": torch.tensor([3.0])}
    found = decayed_sum(before, new, 0.5)
    assert {name: value.tolist() for name, value in found.items()} == {
        "a": [2.0, 2.0],
        "only before": [5.0],
        "only new": [3.0],
    }
    first = decayed_sum(None, new, 0.5)
    assert {name: value.tolist() for name, value in first.items()} == {"a": [1.0, 0.0], "only new": [3.0]}
    assert np.array_equal(before["a"], [2.0, 4.0])
