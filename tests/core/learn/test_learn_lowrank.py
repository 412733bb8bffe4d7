from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from perdure.learn.lowrank import LowRankLinear, in_precision, with_factors

TARGETS = ("0.0", "0.2")
SCALE = 3.0


def layers(dtype: torch.dtype = torch.float64) -> nn.ModuleList:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = nn.ModuleList([nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False))])
    return made.to(dtype)


def filled(maps: dict[str, LowRankLinear], dtype: torch.dtype = torch.float64) -> None:
    generator = torch.Generator().manual_seed(2)
    for one in maps.values():
        one.A = nn.Parameter(torch.randn(one.A.shape, generator=generator, dtype=torch.float64).to(dtype))
        one.B = nn.Parameter(torch.randn(one.B.shape, generator=generator, dtype=torch.float64).to(dtype))


def inputs(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(3, 7, 6), (5, 6)])
def test_answers_and_gradients_are_those_of_peft(shape: tuple[int, ...]) -> None:
    theirs = layers()
    inject_adapter_in_model(LoraConfig(r=2, lora_alpha=6, target_modules=list(TARGETS), lora_dropout=0.0), theirs)
    mine, maps = with_factors(layers(), TARGETS, 2, SCALE)
    filled(maps)
    for name, one in maps.items():
        other = theirs.get_submodule(name)
        other.lora_A["default"].weight = nn.Parameter(one.A.detach().clone())  # type: ignore[index, union-attr]
        other.lora_B["default"].weight = nn.Parameter(one.B.detach().clone())  # type: ignore[index, union-attr]
    x, y = inputs(*shape).requires_grad_(), inputs(*shape).requires_grad_()
    found, wanted = mine[0](x), theirs[0](y)
    torch.testing.assert_close(found, wanted)
    slope = inputs(*found.shape)
    found.backward(slope)
    wanted.backward(slope)
    torch.testing.assert_close(x.grad, y.grad)
    for name, one in maps.items():
        other = theirs.get_submodule(name)
        torch.testing.assert_close(one.A.grad, other.lora_A["default"].weight.grad)  # type: ignore[index, union-attr]
        torch.testing.assert_close(one.B.grad, other.lora_B["default"].weight.grad)  # type: ignore[index, union-attr]
        torch.testing.assert_close(one.product(), SCALE * one.B @ one.A)


def test_at_first_nothing_changes_and_only_the_factors_are_trained() -> None:
    before = layers(torch.float32)
    after, maps = with_factors(copy.deepcopy(before), TARGETS, 2, SCALE)
    x = inputs(4, 6).float()
    torch.testing.assert_close(after[0](x), before[0](x))
    after[0](x).sum().backward()
    trained = {name for name, parameter in after.named_parameters() if parameter.requires_grad}
    assert trained == {f"{name}.{factor}" for name in TARGETS for factor in "AB"}
    assert all(one.weight.grad is None for one in maps.values())
    assert all(one.A.abs().max() > 0 for one in maps.values())
    assert not any(one.B.any() for one in maps.values())


def test_a_lower_precision_is_that_of_the_products_alone() -> None:
    exact, maps = with_factors(layers(torch.float32), TARGETS, 2, SCALE)
    filled(maps, torch.float32)
    fast = in_precision(exact, maps, torch.bfloat16)
    x = inputs(64, 6).float()
    with torch.no_grad():
        wanted, found = exact[0](x), fast[0](x)
    assert found.dtype == torch.float32
    assert 0 < float((found - wanted).norm() / wanted.norm()) < 0.01
    for name, one in maps.items():
        other = fast.get_submodule(name)
        assert isinstance(other, LowRankLinear)
        assert (one.weight.dtype, other.weight.dtype) == (torch.float32, torch.bfloat16)
        assert other.A is one.A
        assert other.B is one.B
    slopes = []
    for network in (exact, fast):
        for one in maps.values():
            one.A.grad = one.B.grad = None
        network[0](x).square().sum().backward()
        slopes.append([factor.grad for one in maps.values() for factor in (one.A, one.B)])
    for exactly, roughly in zip(*slopes, strict=True):
        assert exactly is not None
        assert roughly is not None
        assert roughly.dtype == torch.float32
        assert float((roughly - exactly).norm() / exactly.norm()) < 0.02
