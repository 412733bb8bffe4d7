"""One of two processes that train an update together; a test starts both. Its arguments: encoder, job, result."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as distributed
from safetensors.torch import save_file

from perdure.learn.job import Job
from perdure.learn.lora import LoraLearner
from perdure.learn.processes import Processes
from perdure.model.encoder import load_encoder
from perdure.torchrun import follow


def main(encoder: str, job: str, result: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    processes = Processes.current()
    if processes.leads:
        wanted = Job.from_bytes(Path(job).read_bytes())
        cut = load_encoder(encoder, max_tokens=32, adapted_layers=2)
        learner = LoraLearner(cut, wanted.settings, seed=wanted.seed)
        first = learner.update(wanted.data, None)
        second = learner.update(wanted.data, wanted.origin)
        processes.tell(b"")
        parts = {"first": first, "second": second}
        weights = {f"{name}/{key}": value for name, update in parts.items() for key, value in update.weights.items()}
        losses = {f"{name}/loss": torch.tensor(update.loss) for name, update in parts.items()}
        save_file({**weights, **losses}, result)
    else:
        Path(result).write_text(str(follow(processes)))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
