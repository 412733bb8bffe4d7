"""A Ray Serve deployment with `@serve.batch`, as its documentation shows it."""

from __future__ import annotations

import os
import signal
import threading

import ray
import torch
from ray import serve
from ray.serve.config import HTTPOptions
from starlette.requests import Request
from transformers import AutoModelForSequenceClassification, AutoTokenizer

MAX_BATCH = int(os.environ["MAX_BATCH"])
CORES = int(os.environ["OMP_NUM_THREADS"])


@serve.deployment(max_ongoing_requests=512, ray_actor_options={"num_cpus": CORES})
class Classifier:
    def __init__(self) -> None:
        torch.set_num_threads(CORES)
        self.tokenize = AutoTokenizer.from_pretrained(os.environ["MODEL"])
        self.network = AutoModelForSequenceClassification.from_pretrained(os.environ["MODEL"]).eval()

    @serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=float(os.environ["BATCH_TIMEOUT_SECONDS"]))
    async def batched(self, texts: list[str]) -> list[dict[str, object]]:
        batch = self.tokenize(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with torch.inference_mode():
            probabilities = self.network(**batch).logits.softmax(dim=1)
        scores, numbers = probabilities.max(dim=1)
        names = self.network.config.id2label
        return [
            {"label": names[number], "score": score}
            for number, score in zip(numbers.tolist(), scores.tolist(), strict=True)
        ]

    async def __call__(self, request: Request) -> object:
        return await self.batched((await request.json())["text"])


if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    ray.init(num_cpus=CORES, include_dashboard=False, log_to_driver=False, object_store_memory=256 * 2**20)
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=int(os.environ["PORT"])))
    serve.run(Classifier.bind(), route_prefix="/predict")
    stop.wait()
    serve.shutdown()
    ray.shutdown()
