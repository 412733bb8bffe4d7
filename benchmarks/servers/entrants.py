"""The servers that take part."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import perdure
from servers.base import Launch, Place, Server

APPS = Path(__file__).parent / "apps"
MAX_BATCH = 32
BATCH_TIMEOUT_SECONDS = 0.01
"""How long peers may wait for a batch to fill: the 0.1 s that they document is more than the latency allowed."""
BARE_LOOP = "bare_loop"
PERDURE = "perdure"
TWO_SPACES = "perdure_two_spaces"
BASELINE = "fastapi_pipeline"
EXPORT = "_export"
"""Ends the name of a peer that serves our exported model."""
BATCHED = {"max_batch_size": MAX_BATCH, "batch_timeout_seconds": BATCH_TIMEOUT_SECONDS}
ONE_WORKER = "one worker process; threads of the model = cores"


def app(file: str) -> Callable[[Place], Launch]:
    """Starts one of the programs in `apps/` with the environment's Python."""

    def launch(place: Place) -> Launch:
        model = place.export if file.endswith("_export.py") else place.transformer
        paths = perdure_surroundings() if model == place.export else {}
        return Launch((str(place.python), str(APPS / file)), {**told(place), **paths, "MODEL": str(model)})

    return launch


def told(place: Place) -> dict[str, str]:
    return {
        "PORT": str(place.port),
        "MAX_BATCH": str(MAX_BATCH),
        "BATCH_TIMEOUT_SECONDS": str(BATCH_TIMEOUT_SECONDS),
    }


def _bentoml(place: Place) -> Launch:
    command = (str(place.python), "-m", "bentoml", "serve", "bentoml_service:Classifier", "--working-dir", str(APPS))
    home = {"BENTOML_HOME": str(place.folder / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return Launch(
        (*command, "--host", "127.0.0.1", "--port", str(place.port)),
        {**told(place), **home, "MODEL": str(place.transformer), "PYTHONDONTWRITEBYTECODE": "1"},
    )


def _mlserver(place: Place) -> Launch:
    model = {
        "name": "clinc",
        "implementation": "mlserver_huggingface.HuggingFaceRuntime",
        "max_batch_size": MAX_BATCH,
        "max_batch_time": BATCH_TIMEOUT_SECONDS,
        "parameters": {
            "extra": {
                "task": "text-classification",
                "pretrained_model": str(place.transformer),
                "batch_size": MAX_BATCH,
                "device": -1,
            }
        },
    }
    ports = {"http_port": place.port, "grpc_port": place.port + 1, "metrics_port": place.port + 2}
    settings = {"host": "127.0.0.1", "parallel_workers": 1, "debug": False, **ports}
    (place.folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
    (place.folder / "model-settings.json").write_text(json.dumps(model), encoding="utf-8")
    return Launch((str(place.python), str(place.python.with_name("mlserver")), "start", str(place.folder)))


def _ray(place: Place) -> Launch:
    return Launch(
        (str(place.python), str(APPS / "ray_deployment.py")),
        {**told(place), "MODEL": str(place.transformer), "RAY_USAGE_STATS_ENABLED": "0"},
    )


def served_by_perdure(registry: Path, place: Place) -> Launch:
    """`perdure serve` over a registry, with its defaults."""
    settings = (
        f"registry.url={registry}",
        f"stream.url=sqlite:{place.folder / 'stream.db'}",
        f"spool.path={place.folder / 'spool'}",
    )
    return Launch(perdure_command("serve", "--port", str(place.port), settings=settings), perdure_surroundings())


def perdure_command(*arguments: str, settings: Sequence[str]) -> list[str]:
    """The command line of Perdure, run by the Python that runs this."""
    given = [part for setting in settings for part in ("--set", setting)]
    return [sys.executable, str(Path(sys.executable).with_name("perdure")), *arguments, *given]


def perdure_surroundings() -> dict[str, str]:
    """Lets the child find the very code that this process runs."""
    code = Path(perdure.__file__).parents[2]
    paths = [str(code / part) for part in ("src", "replay", "services") if (code / part).is_dir()]
    return {"PYTHONPATH": os.pathsep.join(paths)}


SERVERS: Mapping[str, Server] = {
    server.name: server
    for server in (
        Server(
            BASELINE,
            app("fastapi_pipeline.py"),
            "/predict",
            "transformer",
            {"route": "a plain function, in FastAPI's threads", "workers": ONE_WORKER},
            requirements=BASELINE,
        ),
        Server(
            "litserve",
            app("litserve_batched.py"),
            "/predict",
            "transformer",
            {**BATCHED, "fast_queue": True, "workers": ONE_WORKER},
            requirements="litserve",
        ),
        Server(
            "bentoml",
            _bentoml,
            "/predict",
            "transformer",
            {
                "adaptive_batching": True,
                "max_batch_size": MAX_BATCH,
                "max_latency_ms": "the default, 60,000: a lower one refuses requests instead of answering them late",
                "workers": ONE_WORKER,
            },
            requirements="bentoml",
            body=lambda text: json.dumps({"texts": [text]}),
            mark=lambda label: f'"label": {json.dumps(label)}',
        ),
        Server(
            "mlserver",
            _mlserver,
            "/v2/models/clinc/infer",
            "transformer",
            {
                **BATCHED,
                "parallel_workers": 1,
                "runtime": "mlserver_huggingface, task text-classification",
                "transformers": "4.41: its newest release imports what later ones do not have",
                "pipeline": "one text at a time: the runtime takes a padding token with the number 0 for none",
            },
            requirements="mlserver",
            body=lambda text: json.dumps(
                {"inputs": [{"name": "args", "shape": [1], "datatype": "BYTES", "data": [text]}]}
            ),
            mark=lambda label: f'\\"label\\": {json.dumps(json.dumps(label))[1:-1]}',
        ),
        Server(
            "ray_serve",
            _ray,
            "/predict",
            "transformer",
            {**BATCHED, "replicas": 1, "num_cpus": "all cores", "max_ongoing_requests": 512},
            requirements="ray_serve",
        ),
        Server(
            f"litserve{EXPORT}",
            app("litserve_export.py"),
            "/predict",
            "version",
            {
                **BATCHED,
                "fast_queue": True,
                "workers": ONE_WORKER,
                "engine": "the version's exported files, run as Perdure runs them",
            },
            requirements=f"litserve{EXPORT}",
            sees_ours=True,
        ),
        Server(
            PERDURE,
            lambda place: served_by_perdure(place.registry, place),
            "/v1/predict",
            "version",
            {"settings": "the defaults; every prediction is recorded", "workers": "one process"},
        ),
        Server(
            TWO_SPACES,
            lambda place: served_by_perdure(place.two_spaces, place),
            "/v1/predict",
            "two_spaces",
            {"settings": "the defaults", "version": "frozen and adapted features: what a promoted LoRA update serves"},
        ),
    )
}
