"""Per-sample Fisher information: a plain loop, torch.func, and the hooks that an update uses, on the same sentences.

    python benchmarks/fisher.py [--repeats 5] [--threads 1 2] [--quick] [--out benchmarks/results/fisher.json]

The diagonal Fisher information of the top three layers' linear maps and of a head over 150 labels, on one batch of 64
sentences of 16 tokens, for labels that the model draws itself:

loop        one forward and one backward pass a sample, gradients squared and added up
torch.func  vmap over grad with functional_call, in chunks of samples and all at once
hooks       `perdure.learn.ewc.fisher_information` on the layers with their adapter, as an update calls it
floor       forward and backward of the batch with no weight's gradient: what no exact method can do without

Each is run in turn, again and again; medians count. `wide` is all-MiniLM-L6-v2, where arithmetic takes the time;
`narrow` is a random BERT of 64 dimensions, where the calls do. --quick takes 8 sentences, runs all twice and writes to
var/bench.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from transformers import AutoModel, BertConfig, BertModel

from backtest_clinc import processor
from contestants.backbone import located
from perdure.learn.ewc import fisher_information
from perdure.model.adapter import linear_names

RESULT = Path(__file__).parent / "results" / "fisher.json"
LAYERS, LABELS, LENGTH, SAMPLES = 3, 150, 16, 64
RANK, ALPHA = 8, 16
SCALE = 16.0
"""Of the head's logits, as in an update."""
CHUNK = 8
"""Samples that torch.func takes at once; with 1 and with all 64 it was slower on the wide encoder."""
GOAL_ERROR, GOAL_RATIO = 1e-5, 10.0
HEAD = "head"


@dataclass(frozen=True)
class Problem:
    """One batch, and the layers in the two forms that the methods want."""

    merged: Tower
    """The adapter's product added to the frozen weights."""
    adapted: nn.ModuleList
    """The adapter beside the frozen weights, as an update trains it."""
    hidden: Tensor
    """n × T × d: what comes out below the layers."""
    drawn: Tensor
    """n labels that the model drew."""
    seed: int

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that the information is of, in the merged form."""
        return dict(self.merged.named_parameters(remove_duplicate=False))

    @property
    def maps(self) -> dict[str, nn.Module]:
        """The same in the adapted form."""
        modules = dict(self.adapted.named_modules())
        return {**{name: modules[name] for name in self.merged.names}, HEAD: self.merged.head}


class Tower(nn.Module):
    """Layers, token mean, head; only the weights of linear maps are parameters."""

    def __init__(self, layers: nn.ModuleList, head: nn.Linear) -> None:
        super().__init__()
        self.layers = layers
        self.head = head
        self.names = linear_names(layers)
        wanted = {f"layers.{name}.weight" for name in self.names} | {"head.weight"}
        for name, parameter in list(self.named_parameters()):
            if name not in wanted:
                owner, _, leaf = name.rpartition(".")
                module = self.get_submodule(owner)
                delattr(module, leaf)
                module.register_buffer(leaf, parameter.detach())

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-probabilities, n × C, of n × T × d."""
        return answers(self.layers, self.head, hidden)


def answers(layers: nn.ModuleList, head: nn.Module, hidden: Tensor) -> Tensor:
    for layer in layers:
        hidden = layer(hidden)
    embedding = nn.functional.normalize(hidden.mean(1), dim=1)
    return torch.log_softmax(head(SCALE * embedding), dim=1)


def problem_of(model: Any, samples: int, seed: int = 0) -> Problem:
    """`samples` sentences of random tokens, and the layers of `model` with a random adapter of full effect.

    torch.func needs a model with `attn_implementation="eager"`; no token is padding, so that attention has no mask.
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size // 2, model.config.vocab_size, (samples, LENGTH), generator=generator)
    with torch.no_grad():
        hidden = model(input_ids=ids, output_hidden_states=True).hidden_states[-1 - LAYERS]
    layers = nn.ModuleList(model.encoder.layer[-LAYERS:]).requires_grad_(False).eval()
    plain, adapted = copy.deepcopy(layers), copy.deepcopy(layers)
    names = linear_names(plain)
    inject_adapter_in_model(LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=list(names)), adapted)
    head = nn.Linear(hidden.shape[-1], LABELS, bias=False)
    with torch.no_grad():
        head.weight.copy_(nn.functional.normalize(torch.randn(head.weight.shape, generator=generator), dim=1))
        for name in names:
            layer: Any = adapted.get_submodule(name)
            down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
            up.copy_(0.02 * torch.randn(up.shape, generator=generator))
            down.copy_(0.02 * torch.randn(down.shape, generator=generator))
            weight = plain.get_submodule(name).weight
            assert isinstance(weight, Tensor)
            weight += ALPHA / RANK * (up @ down)
        merged = Tower(plain, head).requires_grad_(True)
        # As `fisher_information` draws them.
        drawn = torch.multinomial(merged(hidden).exp(), 1, generator=torch.Generator().manual_seed(seed)).squeeze(1)
    return Problem(merged, adapted.eval(), hidden, drawn, seed)


# ── the methods; each gives a matrix for each map ──
def by_loop(problem: Problem) -> dict[str, Tensor]:
    weights = problem.weights
    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with torch.enable_grad():
        for row, label in enumerate(problem.drawn.tolist()):
            loss = problem.merged(problem.hidden[row : row + 1])[0, label]
            for total, gradient in zip(
                totals.values(), torch.autograd.grad(loss, tuple(weights.values())), strict=True
            ):
                total.addcmul_(gradient, gradient)
    return _named(totals, len(problem.hidden))


def by_func(problem: Problem, chunk: int) -> dict[str, Tensor]:
    weights = {name: weight.detach() for name, weight in problem.weights.items()}

    def logarithm(parameters: Mapping[str, Tensor], hidden: Tensor, label: Tensor) -> Tensor:
        found: Tensor = functional_call(problem.merged, dict(parameters), (hidden.unsqueeze(0),))
        return found[0].gather(0, label.unsqueeze(0))[0]

    totals = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for hidden, drawn in zip(problem.hidden.split(chunk), problem.drawn.split(chunk), strict=True):
        gradients = vmap(grad(logarithm), in_dims=(None, 0, 0))(weights, hidden, drawn)
        for name, gradient in gradients.items():
            totals[name] += gradient.square_().sum(0)
    return _named(totals, len(problem.hidden))


def by_hooks(problem: Problem) -> dict[str, Tensor]:
    def forward(hidden: Tensor) -> tuple[Tensor, Tensor]:
        found = answers(problem.adapted, problem.merged.head, hidden)
        return found, torch.ones(len(hidden), dtype=torch.bool)

    generator = torch.Generator().manual_seed(problem.seed)
    return fisher_information(problem.maps, [problem.hidden], forward, generator=generator)[0]


def floor(problem: Problem) -> None:
    hidden = problem.hidden.clone().requires_grad_()
    weights = {name: weight.detach() for name, weight in problem.weights.items()}
    found: Tensor = functional_call(problem.merged, weights, (hidden,))
    torch.autograd.grad(found.gather(1, problem.drawn.unsqueeze(1)).sum(), hidden)


def _named(totals: Mapping[str, Tensor], samples: int) -> dict[str, Tensor]:
    """By the names of the maps, averaged over samples."""
    return {
        name.removeprefix("layers.").removesuffix(".weight"): total.detach() / samples for name, total in totals.items()
    }


METHODS: Mapping[str, Callable[[Problem], Any]] = {
    "loop": by_loop,
    "torch_func": lambda problem: by_func(problem, CHUNK),
    "torch_func_all_at_once": lambda problem: by_func(problem, len(problem.hidden)),
    "hooks": by_hooks,
    "floor": floor,
}


def error(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> float:
    """The worst map's ‖found − wanted‖ / ‖wanted‖."""
    assert set(found) == set(wanted)
    return max(float((found[name] - value).norm() / value.norm()) for name, value in wanted.items())


def timed(problem: Problem, repeats: int, threads: int) -> dict[str, Any]:
    """Seconds of each method with `threads` threads, in turn, `repeats` times."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    runs: dict[str, list[float]] = {name: [] for name in METHODS}
    try:
        for method in METHODS.values():
            method(problem)
        for _ in range(repeats):
            for name, method in METHODS.items():
                start = time.perf_counter()
                method(problem)
                runs[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(before)
    medians = {name: statistics.median(seconds) for name, seconds in runs.items()}
    # A ratio within one round is of the same minute; the machine is not the same in the next.
    ratios = {
        name: statistics.median(loop / one for loop, one in zip(runs["loop"], seconds, strict=True))
        for name, seconds in runs.items()
        if name != "loop"
    }
    return {
        "threads": threads,
        "seconds": medians,
        "times_as_fast_as_the_loop": ratios,
        "goal_ratio": GOAL_RATIO,
        "hooks_reach_the_goal": ratios["hooks"] >= GOAL_RATIO,
        "any_exact_method_could": ratios["floor"] >= GOAL_RATIO,
        "runs": runs,
    }


def case(model: Any, samples: int, repeats: int, threads: Sequence[int]) -> dict[str, Any]:
    problem = problem_of(model, samples)
    wanted = by_loop(problem)
    errors = {name: error(METHODS[name](problem), wanted) for name in ("torch_func", "torch_func_all_at_once", "hooks")}
    return {
        "width": int(model.config.hidden_size),
        "parameters": sum(value.numel() for value in wanted.values()),
        "samples": samples,
        "tokens_per_sample": LENGTH,
        "labels": LABELS,
        "relative_error_to_the_loop": errors,
        "goal_error": GOAL_ERROR,
        "goal_error_met": max(errors.values()) <= GOAL_ERROR,
        "timings": [timed(problem, repeats, count) for count in threads],
    }


def wide() -> Any:
    return AutoModel.from_pretrained(
        located("all-MiniLM-L6-v2"), local_files_only=True, attn_implementation="eager"
    ).eval()


def narrow() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 256}
    return BertModel(BertConfig(vocab_size=1000, attn_implementation="eager", **shape)).eval()


CASES: Mapping[str, Callable[[], Any]] = {"wide": wide, "narrow": narrow}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    if min([options.repeats, *options.threads]) < 1:
        parser.error(f"--repeats and --threads must be at least 1, got {options.repeats} and {options.threads}")
    out = options.out or (Path("var/bench/fisher.json") if options.quick else RESULT)
    samples, repeats = (8, 2) if options.quick else (SAMPLES, options.repeats)
    result: dict[str, Any] = {"setup": setup(options)}
    for name in options.cases:
        result[name] = case(CASES[name](), samples, repeats, options.threads)
        print(f"{name}: {result[name]['parameters']} parameters, errors {result[name]['relative_error_to_the_loop']}")
        for one in result[name]["timings"]:
            seconds = "  ".join(f"{method} {1000 * value:.1f} ms" for method, value in one["seconds"].items())
            ratios = "  ".join(f"{method} {value:.1f}" for method, value in one["times_as_fast_as_the_loop"].items())
            print(f"  {one['threads']} threads: {seconds}\n    times as fast as the loop: {ratios}", flush=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")


def setup(options: argparse.Namespace) -> dict[str, Any]:
    """What the figures were taken with."""
    return {
        "command": "python benchmarks/fisher.py" + (" --quick" if options.quick else ""),
        "cores": os.cpu_count(),
        "processor": processor(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("perdure", "torch", "transformers", "peft")},
    }


if __name__ == "__main__":
    main()
