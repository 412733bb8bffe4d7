"""`perdure serve`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from threadpoolctl import threadpool_limits

from perdure import logs
from perdure.config import ModelSettings, Settings, load_settings
from perdure.engine.choice import check_choice
from perdure.errors import PerdureError, UsageError
from perdure.model.base import Classifier
from perdure.registry import Registry
from perdure.registry.cache import prune
from perdure.stream import open_stream
from perdure_services.keys import redacted
from perdure_services.serving.cores import share_of, threads_of_batch
from perdure_services.serving.exposure import check_exposure, warnings
from perdure_services.serving.processes import start_fleet
from perdure_services.serving.server import listen, run
from perdure_services.serving.spool.spooled_stream import with_spool

_log = logging.getLogger(__name__)

USAGE = 2
FAILURE = 1


def serve(
    config: Annotated[
        Path | None, typer.Option("--config", help="A YAML file with settings, for example perdure.yaml.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.NAME=VALUE", help="Change one setting; may be given several times."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen at. The default, 127.0.0.1, is this machine only.")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen at; 0 takes a free one. The default is 8000.")
    ] = None,
) -> None:
    """Start the online API: predictions, feedback, versions.

    It serves the champion of the registry (make the first one with `perdure fit`), records predictions and feedback
    in the stream (in the folder spool.path until a remote stream has them), and swaps to a newly promoted version
    without dropping a request. At any address but this machine's own it asks for API keys (`perdure keys`). One line
    with the URL is printed when it is ready; its page /docs lists what it can do. Stop it with Ctrl-C: requests under
    way are answered first.

    Exit codes: 0 stopped cleanly, 1 could not run, 2 wrong usage or settings.
    """
    # Swaps, outages and their ends are what this command has to say; they are said without --verbose too.
    logging.getLogger("perdure_services.serving").setLevel(logging.INFO)
    try:
        tree = _settings(config, settings or [], host, port)
        _serve(tree)
    except UsageError as error:
        typer.echo(f"perdure serve: {error}", err=True)
        raise typer.Exit(USAGE) from error
    except (PerdureError, OSError) as error:
        typer.echo(f"perdure serve: {error}", err=True)
        raise typer.Exit(FAILURE) from error


def loader(settings: Settings, registry: Registry) -> Callable[[str], Classifier]:
    """Loads a version of `registry` by its name, through the local cache.

    What it returns raises `VersionNotFound`, `VersionDamaged` and whatever else reading a version may raise.
    """

    # A version knows the name of its encoder; a name in the settings says where it lies on this machine.
    encoder = settings.model.name if settings.model.name != ModelSettings().name else None
    serving = settings.serving
    cache = Path(settings.registry.cache)

    def load(version: str) -> Classifier:
        # Imported here: what runs a model takes a second, and `--help` must not.
        from perdure.engine.load import load_version

        loaded = load_version(
            registry.fetch(version, cache),
            version,
            batch=settings.model.batch,
            threads=settings.model.threads or (share_of(serving) if serving.processes > 1 else 0),
            graph_threads=settings.model.threads or threads_of_batch(serving),
            engine=serving.engine,
            encoder=encoder,
        )
        # One more copy with every swap would fill the disk.
        prune(cache)
        return loaded

    return load


def limit_threads() -> None:
    """One thread for what is small: more would only take cores from the encoder and from requests."""
    # The heads' products.
    threadpool_limits(1, user_api="blas")
    # Batches, to the tokenizer.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def _settings(config: Path | None, overrides: list[str], host: str | None, port: int | None) -> Settings:
    settings = load_settings(config, overrides)
    given = {"serving.host": host, "serving.port": port}
    return settings.with_values({name: value for name, value in given.items() if value is not None})


def _serve(settings: Settings) -> None:
    serving = settings.serving
    logs.use(settings.log.format, redacted)
    as_json = settings.log.format == "json"
    check_exposure(serving.host, serving)
    check_choice(serving.engine)
    for warning in warnings(serving.host, serving):
        _log.warning("%s", warning) if as_json else typer.echo(f"Warning: {warning}", err=True)
    # What collects the logs of a container reads standard output too, and must find nothing but JSON there.
    announce = _log.info if as_json else typer.echo
    if serving.processes > 1:
        start_fleet(settings, listen(serving.host, serving.port))
    registry = Registry(settings.registry.url)
    limit_threads()
    load = loader(settings, registry)
    with (
        listen(serving.host, serving.port) as listener,
        open_stream(settings.stream) as opened,
        with_spool(opened, settings.spool) as stream,
    ):
        run(settings, listener=listener, registry=registry, stream=stream, load=load, announce=announce)
