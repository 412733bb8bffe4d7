"""What a labelled row costs whoever learns from it: one pass of the encoder, and its place in the head's sums.

python -m scaling.labels FEATURES ROWS
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from perdure.config import Settings
from perdure.learn.analytic import HeadLearner
from perdure.memory import Delta
from perdure.model.classifier import shared_encoder
from perdure.model.head import Statistics

WARM_UP = 16


def measure(features: int, rows: int) -> dict[str, Any]:
    """CPU time (ms) of a labelled row, and size and CPU time of one file of statistics."""
    from scaling.place import rows as example

    settings = Settings().with_values({"model.features": features})
    encoder = shared_encoder(settings.model.name, settings.model.max_tokens, settings.lora.layers)
    head = HeadLearner(encoder, settings)
    found = example()
    texts = [f"{text} {number}" for number, (text, _) in zip(range(rows + WARM_UP), found * rows, strict=False)]
    encoder.features(texts[:WARM_UP], settings.model.batch)
    began = time.process_time()
    encoded = encoder.features(texts[WARM_UP:], settings.model.batch)
    encoding = time.process_time() - began
    deltas = [
        Delta(sequence=number + 1, text=text, label=found[number % len(found)][1], sign=1)
        for number, text in enumerate(texts[WARM_UP:])
    ]
    statistics = Statistics(features)
    began = time.process_time()
    head.absorb(statistics, deltas, encoded)
    adding = time.process_time() - began
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "head.safetensors"
        began = time.process_time()
        statistics.save(file)
        saving = time.process_time() - began
        size = file.stat().st_size
    return {
        "features": features,
        "rows": rows,
        "encode_ms": round(1000 * encoding / rows, 3),
        "sums_ms": round(1000 * adding / rows, 3),
        "statistics_mb": round(size / 1e6, 2),
        "save_cpu_s": round(saving, 3),
    }


if __name__ == "__main__":
    print(json.dumps(measure(int(sys.argv[1]), int(sys.argv[2]))))
