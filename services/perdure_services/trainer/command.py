"""`perdure train`."""

from __future__ import annotations

import logging
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import typer

from perdure import logs
from perdure.config import load_settings


def train(
    once: Annotated[
        bool, typer.Option("--once", help="Read the stream, run one turn if there is something to learn, and leave.")
    ] = False,
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML file with settings, such as perdure.yaml.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.NAME=VALUE", help="One setting; may be given several times."),
    ] = None,
) -> None:
    """Keep learning: run turns of the loop on a schedule, and early when enough new labels have come.

    When: trainer.interval_seconds or trainer.cron, and trainer.min_new_labels. Each turn runs in a process of its own,
    which is ended after trainer.turn_timeout_seconds, and when the trainer is stopped (Ctrl-C); the next turn goes on
    where it was. Without a version yet, the first one is made as soon as there are labels. Of several trainers on one
    registry one works; the others wait, and one of them takes over when it stops, or after trainer.lease_seconds
    without a word of it. /metrics and /healthz are told at trainer.port.
    """
    # One line a turn is what this command has to say; it is said without --verbose too.
    logging.getLogger("perdure_services.trainer").setLevel(logging.INFO)
    # What it warns of, a turn that is still running, our own schedule tells in its words.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    # Imported here: a machine that only serves has no scheduler, and its `--help` must still work.
    from perdure_services.monitor.endpoint import Endpoint
    from perdure_services.trainer.trainer import Trainer

    settings = load_settings(config, overrides or ())
    logs.use(settings.log.format)
    trainer = Trainer(settings)
    # The only queue that a signal handler may put into, whatever it interrupts.
    events: SimpleQueue[int | Future[int]] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _frame: events.put(caught))
    at = settings.trainer
    with (
        # A job is over before anybody asks twice: it has no endpoint.
        Endpoint(at.host, at.port, registry=trainer.metrics.registry, problem=trainer.problem)
        if at.port and not once
        else nullcontext(),
        ThreadPoolExecutor(1, thread_name_prefix="perdure-once") as worker,
    ):
        if once:
            worker.submit(trainer.once).add_done_callback(events.put)
        else:
            trainer.start()
            logging.getLogger(__name__).info("the trainer watches the stream")
        event = events.get()
        if not isinstance(event, Future):
            logging.getLogger(__name__).info("%s: the trainer stops", signal.Signals(event).name)
        trainer.stop()
    raise typer.Exit(event.result() if isinstance(event, Future) else 0)
