from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from transformers import AutoModel, AutoTokenizer

from perdure.learn import ewc
from perdure.learn.ewc import EXACT_CLASSES, Anchor, FisherRecorder, decayed_sum, fisher_information
from perdure.model.adapter import linear_names
from perdure.model.encoder import Encoder, pool

Requests = Callable[..., list[tuple[str, str]]]


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


@pytest.mark.parametrize("limit", [1, 3 * 5 * 4 * 3, 1 << 20])
def test_how_many_gradients_are_held_at_once_does_not_matter(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """One sample at a time, three at a time with one left over, all at once."""
    layer, tokens = linear(3, 5), torch.randn(7, 4, 5, generator=torch.Generator().manual_seed(1))
    wanted = sum(torch.autograd.grad(layer(one).tanh().sum(), layer.weight)[0] ** 2 for one in tokens)
    monkeypatch.setattr(ewc, "GRADIENT_BYTES", limit)
    largest: list[int] = []
    bmm = torch.bmm

    def watched(one: Tensor, other: Tensor, *, out: Tensor) -> Tensor:
        largest.append(out.element_size() * out.numel())
        return bmm(one, other, out=out)

    monkeypatch.setattr(torch, "bmm", watched)
    recorder = FisherRecorder({"map": layer})
    layer(tokens).tanh().sum().backward()
    recorder.close()
    assert max(largest) <= max(limit, 3 * 5 * 4)
    torch.testing.assert_close(recorder.squares["map"], wanted, rtol=1e-5, atol=1e-6)


def test_a_pass_leaves_no_gradients_behind() -> None:
    layer, rows = linear(4), torch.randn(10, 5, generator=torch.Generator().manual_seed(1))
    fisher_of(layer, rows, 5)
    assert layer.weight.grad is None
    layer.weight.grad = torch.ones(4, 5)
    fisher_of(layer, rows, 5)
    assert torch.equal(layer.weight.grad, torch.ones(4, 5))


def test_nothing_of_a_pass_stays_in_memory() -> None:
    """A hook holds the recorder, and the recorder what the hook is on: a ring through torch that nobody collects."""
    layer, rows = linear(6), torch.randn(32, 5, generator=torch.Generator().manual_seed(1))

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(one), Tensor) for one in gc.get_objects())

    fisher_of(layer, rows, batch=4)
    before = tensors()
    fisher_of(layer, rows, batch=4)
    assert tensors() == before


def test_hooks_are_gone_afterwards_even_when_forward_fails() -> None:
    layer, rows = linear(4), torch.randn(3, 5)

    def forward(part: Tensor) -> tuple[Tensor, Tensor]:
        layer(part)
        raise RuntimeError("forward failed")

    fisher_of(layer, rows, 3)
    with pytest.raises(RuntimeError, match="forward failed"):
        fisher_information({"head": layer}, [rows], forward, generator=torch.Generator())
    assert not layer._forward_hooks


# ── the same by a loop and by torch.func ──
HEADS = {"few classes, exact": 5, "many classes, drawn": EXACT_CLASSES + 3}
SCALE = 16.0


class Attentive(nn.Module):
    """The encoder's top layers under a head: log-probabilities of texts whose padding attention must not see."""

    def __init__(self, encoder: Encoder, classes: int) -> None:
        super().__init__()
        self.layers = encoder.copy_top()
        self.names = linear_names(self.layers)
        self.head = linear(classes, encoder.dim, seed=3)

    def maps(self) -> dict[str, nn.Module]:
        modules = dict(self.layers.named_modules())
        return {**{f"layers.{name}": modules[name] for name in self.names}, "head": self.head}

    def weights(self) -> dict[str, Tensor]:
        return {f"{name}.weight": dict(self.named_parameters())[f"{name}.weight"] for name in self.maps()}

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """n × C of n × T × d and n × T."""
        unseen = (1.0 - mask[:, None, None, :]) * torch.finfo(torch.float32).min
        for layer in self.layers:
            hidden = layer(hidden, unseen)
        logits = self.head(SCALE * nn.functional.normalize(pool(hidden, mask), dim=1))
        return torch.log_softmax(logits, dim=1)


def by_loop(model: Attentive, hidden: Tensor, mask: Tensor, labels: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """One backward pass a sample and label; Σ weight · (∂ log p(label) / ∂W)²."""
    weights = model.weights()
    total = {name: torch.zeros_like(value) for name, value in weights.items()}
    for row in range(len(hidden)):
        for label, share in zip(labels[row], weight[row], strict=True):
            logarithm = model(hidden[row : row + 1], mask[row : row + 1])[0, label]
            gradients = torch.autograd.grad(logarithm, list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                total[name] += share * gradient**2
    return {name: value / len(hidden) for name, value in total.items()}


def by_func(model: Attentive, hidden: Tensor, mask: Tensor, labels: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """The same sum by vmap over samples and, inside it, labels."""

    def logarithm(weights: Mapping[str, Tensor], row: Tensor, seen: Tensor, label: Tensor) -> Tensor:
        found: Tensor = functional_call(model, dict(weights), (row.unsqueeze(0), seen.unsqueeze(0)))
        return found[0].gather(0, label.unsqueeze(0))[0]

    weights = {name: value.detach() for name, value in model.weights().items()}
    of_labels = vmap(grad(logarithm), in_dims=(None, None, None, 0))
    gradients = vmap(of_labels, in_dims=(None, 0, 0, 0))(weights, hidden, mask, labels)
    shares = weight / len(hidden)
    return {name: torch.einsum("nl,nl...->...", shares, value**2) for name, value in gradients.items()}


@pytest.fixture(scope="module")
def eager_encoder(tiny_encoder: Path) -> Encoder:
    """vmap goes through no other attention."""
    model = AutoModel.from_pretrained(tiny_encoder, local_files_only=True, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder, local_files_only=True)
    return Encoder(model, tokenizer, name="tiny", fingerprint="", max_tokens=32, adapted_layers=2)


@pytest.mark.parametrize("head", HEADS)
def test_hooks_a_loop_and_torch_func_give_the_same(eager_encoder: Encoder, requests: Requests, head: str) -> None:
    texts = [text for text, _ in requests(("card", "login", "parcel"), 4)]
    texts[0] = texts[0] + " please help can you not work does"
    trunk = eager_encoder.trunk(eager_encoder.tokens(texts))
    hidden, mask = trunk.hidden, trunk.mask.float()
    assert len(set(mask.sum(1).tolist())) > 1, "texts of one length would not show whether padding counts"
    model, classes = Attentive(eager_encoder, HEADS[head]), HEADS[head]
    with torch.no_grad():
        probabilities = model(hidden, mask).exp()
    if classes <= EXACT_CLASSES:
        labels, weight = torch.arange(classes).expand(len(texts), classes), probabilities
    else:
        labels = torch.multinomial(probabilities, 1, generator=torch.Generator().manual_seed(5))
        weight = torch.ones(len(texts), 1)
    for parameter in model.parameters():
        parameter.requires_grad_()
    loop = by_loop(model, hidden, mask, labels, weight)
    func = by_func(model, hidden, mask, labels, weight)

    def forward(_batch: int) -> tuple[Tensor, Tensor]:
        return model(hidden, mask), torch.ones(len(texts), dtype=torch.bool)

    hooks, samples = fisher_information(model.maps(), [0], forward, generator=torch.Generator().manual_seed(5))
    assert samples == len(texts)
    assert set(loop) == set(func) == {f"{name}.weight" for name in hooks}
    assert len(loop) == 2 * 6 + 1
    for name, value in hooks.items():
        wanted = loop[f"{name}.weight"]
        assert float(wanted.max()) > 0
        floor = 1e-5 * float(wanted.mean())
        torch.testing.assert_close(func[f"{name}.weight"], wanted, rtol=1e-5, atol=floor)
        torch.testing.assert_close(value, wanted, rtol=1e-5, atol=floor)


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


def test_an_anchor_without_information_holds_nothing() -> None:
    assert float(Anchor({}, {}, 0).penalty({})) == 0


def test_an_anchor_goes_to_another_device_whole() -> None:
    anchor = anchor_of([[1.0, 2.0]], [[3.0, 4.0]])
    # "meta" is a device without data that every machine has, and that refuses to be mixed with another.
    moved = anchor.to("meta")
    assert moved.theta["head"].is_meta
    assert moved.penalty({"head": torch.ones(3, 2, device="meta")}).is_meta
    assert moved.samples == 10
    assert not anchor.theta["head"].is_meta


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
