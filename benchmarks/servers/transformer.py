"""The fine-tuned transformer that every peer serves: a folder as `transformers` saves it.

It is the encoder that Perdure has, as `BertForSequenceClassification`: its pooler takes the first token's state, and a
linear map gives a score for each label. The encoder's weights stay as they are, the pooler lets the state through, and
the map alone is fitted. That is enough to tell right answers from wrong ones; what an answer costs depends on the
shapes, not on the weights.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertForSequenceClassification
from transformers.utils import logging as transformers_logging

from contestants.backbone import located
from perdure.dataset import DataRow

BATCH = 64
STEPS = 100
"""Of L-BFGS; by then the loss hardly falls any more."""
PENALTY = 1e-5
MAX_TOKENS = 512
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")
"""Files that are copied, not saved anew: an older `transformers` must read them too."""


def transformer(folder: Path, model: str, rows: Sequence[DataRow]) -> Path:
    """The folder of a transformer that knows the labels of `rows`; made where it is not there yet."""
    if folder.is_dir():
        return folder
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    source = Path(located(model))
    part = folder.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    labels = sorted({row.label for row in rows})
    numbers = {label: number for number, label in enumerate(labels)}
    network = BertForSequenceClassification.from_pretrained(
        source,
        local_files_only=True,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id=numbers,
    )
    network.eval()  # type: ignore[no-untyped-call]
    pooler = network.bert.pooler
    assert pooler is not None, "a sequence classifier of this kind has a pooler"
    with torch.no_grad():
        # The one that comes with the encoder was never trained for sentences.
        pooler.dense.weight.copy_(torch.eye(network.config.hidden_size))
        pooler.dense.bias.zero_()
    inputs = pooled(network, source, [row.text for row in rows])
    weights, offsets = fitted(inputs, torch.tensor([numbers[row.label] for row in rows]), len(labels))
    with torch.no_grad():
        network.classifier.weight.copy_(weights)
        network.classifier.bias.copy_(offsets)
    network.save_pretrained(part)
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copyfile(source / name, part / name)
    part.rename(folder)
    return folder


def answers(folder: Path, texts: Sequence[str]) -> list[str]:
    """The labels that the transformer in `folder` gives, in float32."""
    network = BertForSequenceClassification.from_pretrained(folder, local_files_only=True)
    network.eval()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        best = network.classifier(pooled(network, folder, texts)).argmax(dim=1).tolist()
    names = {int(number): name for number, name in (network.config.id2label or {}).items()}
    return [names[number] for number in best]


@torch.no_grad()
def pooled(network: BertForSequenceClassification, tokenizer: Path, texts: Sequence[str]) -> torch.Tensor:
    """What the classifier's last map is given for n texts: n × d."""
    tokenize = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    ids = tokenize(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"]
    order = np.argsort([len(one) for one in ids], kind="stable")
    result = torch.zeros(len(texts), network.config.hidden_size)
    for start in range(0, len(texts), BATCH):
        rows = order[start : start + BATCH]
        batch = tokenize.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
        result[torch.from_numpy(rows)] = network.bert(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).pooler_output
    return result


def fitted(inputs: torch.Tensor, classes: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights (count × d) and offsets (count) of a logistic regression on n × d inputs with n classes."""
    weights = torch.zeros(count, inputs.shape[1], requires_grad=True)
    offsets = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights, offsets], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(inputs @ weights.T + offsets, classes)
        value = value + PENALTY * weights.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return weights.detach(), offsets.detach()
