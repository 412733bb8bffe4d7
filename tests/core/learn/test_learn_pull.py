from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from perdure.learn.ewc import Anchor
from perdure.learn.lowrank import LowRankLinear
from perdure.learn.pull import Pull

SHAPES = {"one": (5, 6), "other": (4, 3)}


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(4)


@pytest.fixture
def maps(generator: torch.Generator) -> dict[str, LowRankLinear]:
    return {
        name: LowRankLinear(
            nn.Linear(wide, tall),
            nn.Parameter(torch.randn(2, wide, generator=generator)),
            nn.Parameter(torch.randn(tall, 2, generator=generator)),
            1.5,
        )
        for name, (tall, wide) in SHAPES.items()
    }


@pytest.fixture
def head(generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter(torch.randn(7, 6, generator=generator))


def an_anchor(generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Anchor:
    shapes = {**SHAPES, "head": (5, 6)}
    theta = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    fisher = {name: torch.rand(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
    return Anchor(theta, fisher, 1)


def with_gradients(maps: dict[str, LowRankLinear], head: nn.Parameter, generator: torch.Generator) -> list[Tensor]:
    """Every parameter with some gradient already; copies of those."""
    parameters = [factor for one in maps.values() for factor in (one.A, one.B)] + [head]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    return [parameter.grad.clone() for parameter in parameters if parameter.grad is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_pull_is_the_gradient_of_the_penalty(
    maps: dict[str, LowRankLinear], head: nn.Parameter, generator: torch.Generator, dtype: torch.dtype
) -> None:
    anchor = an_anchor(generator, dtype)
    before = with_gradients(maps, head, generator)
    penalty = 30.0 * anchor.penalty({name: one.product() for name, one in maps.items()} | {"head": head})
    parameters = [factor for one in maps.values() for factor in (one.A, one.B)] + [head]
    slopes = torch.autograd.grad(penalty, parameters)
    told = Pull(anchor, maps, {"head": head}, 30.0).add_gradients()
    torch.testing.assert_close(told, penalty.detach(), rtol=1e-5, atol=0)
    for parameter, one, slope in zip(parameters, before, slopes, strict=True):
        torch.testing.assert_close(parameter.grad, one + slope, rtol=1e-4, atol=1e-4)
    assert head.grad is not None
    torch.testing.assert_close(head.grad[5:], before[-1][5:])


def test_a_map_that_the_anchor_does_not_know_is_free(
    maps: dict[str, LowRankLinear], head: nn.Parameter, generator: torch.Generator
) -> None:
    whole = an_anchor(generator)
    anchor = Anchor({"one": whole.theta["one"]}, {"one": whole.fisher["one"]}, 1)
    before = with_gradients(maps, head, generator)
    Pull(anchor, maps, {"head": head}, 2.0).add_gradients()
    assert maps["one"].A.grad is not None
    assert not torch.equal(maps["one"].A.grad, before[0])
    for parameter, one in zip((maps["other"].A, maps["other"].B, head), before[2:], strict=True):
        assert torch.equal(parameter.grad, one)  # type: ignore[arg-type]
