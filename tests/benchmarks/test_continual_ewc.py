from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from contestants.ewc import Consolidation, fisher_information


def linear(rows: int, columns: int, seed: int = 0) -> nn.Linear:
    generator = torch.Generator().manual_seed(seed)
    made = nn.Linear(columns, rows, bias=False)
    with torch.no_grad():
        made.weight.copy_(torch.randn(rows, columns, generator=generator))
    return made


def test_fisher_of_a_linear_softmax_is_what_theory_says() -> None:
    head = linear(3, 2)
    rows = torch.tensor([[1.0, -2.0], [0.5, 0.3], [-1.5, 1.0]])
    probabilities = torch.softmax(head(rows), dim=1).detach()
    expected = torch.einsum("nk,nj->kj", probabilities * (1 - probabilities), rows**2) / len(rows)
    # Labels are drawn: the same rows again and again.
    found = fisher_information({"head": head}, [rows.repeat(6000, 1)], head, torch.Generator().manual_seed(0))["head"]
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.005)


def test_fisher_squares_the_gradient_of_each_sample_whatever_the_batch() -> None:
    inner, head = linear(4, 3, seed=1), linear(2, 4, seed=2)
    rows = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(3))

    def logits(batch: Tensor) -> Tensor:
        result: Tensor = head(torch.tanh(inner(batch)).sum(dim=1))
        return result

    # The same uniform draws, one row after the other, give the same labels.
    labels = torch.multinomial(torch.softmax(logits(rows), dim=1), 1, generator=torch.Generator().manual_seed(4))
    expected = {"inner": torch.zeros(4, 3), "head": torch.zeros(2, 4)}
    for row, label in zip(rows, labels, strict=True):
        loss = nn.functional.cross_entropy(logits(row[None]), label)
        gradients = torch.autograd.grad(loss, [inner.weight, head.weight])
        expected["inner"] += gradients[0] ** 2 / 6
        expected["head"] += gradients[1] ** 2 / 6
    found = fisher_information({"inner": inner, "head": head}, [rows], logits, torch.Generator().manual_seed(4))
    torch.testing.assert_close(found, expected)
    assert inner.weight.grad is None


def test_the_penalty_is_half_lambda_fisher_distance_squared() -> None:
    head = linear(2, 2)
    ewc = Consolidation(10.0, 0.5)
    assert float(ewc.penalty({"head": head}).detach()) == 0
    ewc.settle({"head": head}, {"head": torch.tensor([[1.0, 2.0], [0.0, 3.0]])})
    with torch.no_grad():
        head.weight += torch.tensor([[1.0, 1.0], [5.0, 2.0]])
    assert float(ewc.penalty({"head": head}).detach()) == pytest.approx(0.5 * 10 * (1 + 2 + 0 + 3 * 4), rel=1e-5)


def test_fisher_decays_and_rows_that_a_head_gained_are_free_until_they_are_settled() -> None:
    small, large = linear(1, 2), linear(2, 2)
    ewc = Consolidation(2.0, 0.5)
    ewc.settle({"head": small}, {"head": torch.tensor([[4.0, 8.0]])})
    with torch.no_grad():
        large.weight[0] = small.weight[0]
    assert float(ewc.penalty({"head": large}).detach()) == 0
    ewc.settle({"head": large}, {"head": torch.tensor([[1.0, 1.0], [2.0, 2.0]])})
    with torch.no_grad():
        large.weight += 1
    assert float(ewc.penalty({"head": large}).detach()) == pytest.approx((0.5 * 4 + 1) + (0.5 * 8 + 1) + 2 + 2)
    assert ewc.bytes_kept() == 2 * 4 * 4
