"""LitServe with dynamic batching, as its documentation shows it."""

from __future__ import annotations

import os

import litserve as ls
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Classifier(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.tokenize = AutoTokenizer.from_pretrained(os.environ["MODEL"])
        self.network = AutoModelForSequenceClassification.from_pretrained(os.environ["MODEL"]).eval()

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[tuple[str, float]]:
        batch = self.tokenize(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            probabilities = self.network(**batch).logits.softmax(dim=1)
        scores, numbers = probabilities.max(dim=1)
        names = self.network.config.id2label
        return [(names[number], score) for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)]

    def encode_response(self, output: tuple[str, float]) -> dict[str, object]:
        return {"label": output[0], "score": output[1]}


if __name__ == "__main__":
    api = Classifier(
        max_batch_size=int(os.environ["MAX_BATCH"]), batch_timeout=float(os.environ["BATCH_TIMEOUT_SECONDS"])
    )
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
