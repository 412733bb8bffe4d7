"""`perdure ingest`."""

from __future__ import annotations

import logging
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from perdure import logs
from perdure.config import load_settings


def ingest(
    config: Annotated[
        Path | None, typer.Option("--config", metavar="FILE", help="YAML file with settings, such as perdure.yaml.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.NAME=VALUE", help="One setting; may be given several times."),
    ] = None,
) -> None:
    """Read a Kafka topic together with other ingesters, where one process is not enough.

    Start as many as you like, at most one for each partition: the broker deals the partitions to them, and deals anew
    when one comes or goes. What each has read is kept as snapshots in the registry; turns put them together (give the
    trainer ingest.shards=true). Who takes a partition over goes on from its last snapshot, and its former owner, should
    it wake up, can write no more. Stop it with Ctrl-C: it leaves last snapshots behind. /metrics and /healthz are told
    at ingest.port.
    """
    logging.getLogger("perdure_services.ingester").setLevel(logging.INFO)
    settings = load_settings(config, overrides or ())
    logs.use(settings.log.format)
    # Imported here: torch takes seconds, and `--help` must not.
    from perdure.learn.absorb import Absorber
    from perdure.learn.analytic import HeadLearner
    from perdure.model.classifier import shared_encoder
    from perdure_services.ingester.ingester import Ingester
    from perdure_services.monitor.endpoint import Endpoint

    encoder = shared_encoder(settings.model.name, settings.model.max_tokens, settings.lora.layers)
    ingester = Ingester(settings, Absorber(encoder, HeadLearner(encoder, settings), settings).absorb)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _caught, _frame: ingester.stop())
    at = settings.ingest
    with (
        Endpoint(at.host, at.port, registry=ingester.metrics.registry, problem=ingester.problem)
        if at.port
        else nullcontext()
    ):
        ingester.run()
