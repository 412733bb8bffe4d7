"""LitServe with dynamic batching over the exported model."""

from __future__ import annotations

import os
from pathlib import Path

import litserve as ls
from exported import Exported


class Classifier(ls.LitAPI):
    def setup(self, device: str) -> None:
        self.classify = Exported(Path(os.environ["MODEL"]), int(os.environ["OMP_NUM_THREADS"]))

    def decode_request(self, request: dict[str, str]) -> str:
        return request["text"]

    def predict(self, texts: list[str]) -> list[tuple[str, float]]:
        answers: list[tuple[str, float]] = self.classify(texts)
        return answers

    def encode_response(self, output: tuple[str, float]) -> dict[str, object]:
        return {"label": output[0], "score": output[1]}


if __name__ == "__main__":
    api = Classifier(
        max_batch_size=int(os.environ["MAX_BATCH"]), batch_timeout=float(os.environ["BATCH_TIMEOUT_SECONDS"])
    )
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(host="127.0.0.1", port=int(os.environ["PORT"]), generate_client_file=False, log_level="warning")
