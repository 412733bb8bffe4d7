"""Several processes, on one GPU each or on processors, train a LoRA update together.

    torchrun --nproc-per-node 2 -m perdure.torchrun update --config perdure.yaml

The first process runs the command as `perdure` would; the others take part in the training of LoRA updates and in
nothing else: they do not ingest, judge or promote. The first sends them what they need, so only it needs the settings;
all need the encoder. Set `lora.precision=float32` to get the update of one process to rounding.
"""

from __future__ import annotations

import logging
import os
from datetime import timedelta

import torch
import torch.distributed as distributed

from perdure.errors import UsageError
from perdure.learn.job import Job
from perdure.learn.processes import Processes

logger = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(days=1)
"""The others hear nothing while the first process ingests and judges."""


def follow(processes: Processes) -> int:
    """Takes part in everything that the first process trains, until it says that it is done; how often that was.

    An update in two halves is trained twice.

    Raises:
        UsageError: the encoder here has other weights than that of the first process.
    """
    from perdure.learn.lora import LoraLearner
    from perdure.model.classifier import shared_encoder

    trainings = 0
    while message := processes.hear():
        job = Job.from_bytes(message)
        encoder = shared_encoder(job.encoder.name, job.encoder.max_tokens, job.encoder.adapted_layers)
        if encoder.fingerprint != job.encoder.fingerprint:
            raise UsageError(
                f"encoder {job.encoder.name!r} has other weights in process {processes.rank} than in the first one: "
                "put the same files in every place"
            )
        LoraLearner(encoder, job.settings, seed=job.seed, device=job.device).train(job.data, job.origin)
        trainings += 1
    return trainings


def main() -> None:
    """Starts the process group that torchrun describes, and runs this process's part."""
    from accelerate import PartialState

    from perdure import cli

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    PartialState(cpu=not torch.cuda.is_available(), timeout=LONGEST_WAIT)
    processes = Processes.current()
    if not processes.leads:
        logger.info("process %d took part in %d trainings", processes.rank, follow(processes))
    else:
        try:
            cli.main()
        except SystemExit as end:
            # After a failure the others may be in the middle of an update: torchrun ends them.
            if end.code:
                raise
        if processes.count > 1:
            processes.tell(b"")
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    main()
