"""The floor: the exported model called in a loop, with no server around it.

    python bare_loop.py TASK OUTCOME

The task has the model's folder, texts, the seconds of each measurement and the cores. One call with one text is timed
with one thread and with one for each core; batches are asked of one model with a thread for each core, and of as many
models with one thread each. The best of each is the floor.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
from statistics import quantiles

from exported import Exported

BATCHES = (8, 16, 32)
WARM_UP_CALLS = 5


def single(model: Exported, texts: Sequence[str], seconds: float) -> dict[str, float]:
    """Milliseconds of one call with one text."""
    times = []
    end = time.perf_counter() + seconds
    for text in cycle(texts):
        began = time.perf_counter()
        model([text])
        done = time.perf_counter()
        times.append(1000 * (done - began))
        if done > end and len(times) > 2 * WARM_UP_CALLS:
            break
    times = times[WARM_UP_CALLS:]
    cuts = quantiles(times, n=100)
    return {"p50_ms": round(cuts[49], 3), "p99_ms": round(cuts[98], 3), "calls": len(times)}


def batched(models: Sequence[Exported], texts: Sequence[str], size: int, seconds: float) -> float:
    """Sentences a second, each model called by a thread of its own with batches of `size` texts."""
    # Every batch is full, however few texts there are.
    texts = [*texts, *texts[: -len(texts) % size]] if len(texts) >= size else list(islice(cycle(texts), size))
    batches = [texts[start : start + size] for start in range(0, len(texts), size)]
    done = [0] * len(models)
    for model in models:
        model(batches[0])
    began = time.perf_counter()

    def run(place: int) -> None:
        for batch in cycle(batches[place:] + batches[:place]):
            if time.perf_counter() - began > seconds:
                return
            models[place](batch)
            done[place] += len(batch)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(len(models))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return round(sum(done) / (time.perf_counter() - began), 1)


def main() -> None:
    task, outcome = map(Path, sys.argv[1:3])
    given = json.loads(task.read_text(encoding="utf-8"))
    folder, texts, seconds, cores = Path(given["model"]), given["texts"], given["seconds"], given["cores"]
    one, wide = Exported(folder, 1), Exported(folder, cores)
    many = [one, *(Exported(folder, 1) for _ in range(cores - 1))]
    found = {
        "single": {"1_thread": single(one, texts, seconds), f"{cores}_threads": single(wide, texts, seconds)},
        "batched": {
            str(size): {
                f"1_model_of_{cores}_threads": batched([wide], texts, size, seconds),
                f"{cores}_models_of_1_thread": batched(many, texts, size, seconds),
            }
            for size in given.get("batches", BATCHES)
        },
    }
    outcome.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
