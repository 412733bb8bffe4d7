"""A BentoML service with adaptive batching, as its documentation shows it."""

from __future__ import annotations

import os

import bentoml
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


@bentoml.service(workers=1)
class Classifier:
    def __init__(self) -> None:
        self.tokenize = AutoTokenizer.from_pretrained(os.environ["MODEL"])
        self.network = AutoModelForSequenceClassification.from_pretrained(os.environ["MODEL"]).eval()

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["MAX_BATCH"]))
    def predict(self, texts: list[str]) -> list[dict[str, object]]:
        batch = self.tokenize(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            probabilities = self.network(**batch).logits.softmax(dim=1)
        scores, numbers = probabilities.max(dim=1)
        names = self.network.config.id2label
        return [
            {"label": names[number], "score": score}
            for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]
