from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from perdure.config import ALLOW_ANONYMOUS, Settings
from perdure.errors import RegistryError, StreamError
from perdure.registry import Registry
from perdure.stream import SqliteStream
from perdure_services.serving import command
from perdure_services.serving.server import listen, url_of


@pytest.fixture(autouse=True)
def _clean(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("PERDURE_SERVING__PORT", "PERDURE_SERVING__HOST", "PERDURE_STREAM__URL", "PERDURE_REGISTRY__URL"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def ran(monkeypatch):
    """What `run` was called with."""
    calls = []

    def run(settings, *, listener, registry, stream, load, announce):
        calls.append((settings, listener.getsockname(), registry, stream, load))
        announce("it runs")

    monkeypatch.setattr(command, "run", run)
    return calls


@pytest.fixture
def serve():
    app = typer.Typer()
    app.command("serve")(command.serve)

    def invoke(*arguments):
        return CliRunner().invoke(app, list(arguments))

    return invoke


def test_it_runs_with_what_the_options_say(serve, ran):
    Path("perdure.yaml").write_text("serving:\n  max_batch: 7\n  port: 1\n")
    result = serve("--config", "perdure.yaml", "--set", "serving.max_queue=9", "--set", "seed=3", "--port", "0")
    assert result.exit_code == 0, result.output
    assert result.stdout == "it runs\n"
    assert result.stderr == ""
    settings, address, registry, stream, _ = ran[0]
    assert (settings.serving.max_batch, settings.serving.max_queue, settings.seed) == (7, 9, 3)
    assert settings.serving.port == 0
    assert address[0] == "127.0.0.1"
    assert address[1] > 0
    assert registry.name == "var/perdure/registry"
    assert isinstance(stream, SqliteStream)
    with pytest.raises(StreamError, match="closed"):
        stream.end()


def test_threads_go_where_the_model_runs(serve, ran, monkeypatch):
    blas, asked = [], []
    monkeypatch.setattr("perdure_services.serving.command.threadpool_limits", lambda count, **given: blas.append(count))
    monkeypatch.setattr("perdure.engine.load.load_version", lambda *args, **given: asked.append(given))
    monkeypatch.setattr(Registry, "fetch", lambda self, version, cache: cache)
    monkeypatch.setattr("perdure_services.serving.cores.cores", lambda: 16)
    cases = [
        ([], 0, 4),
        (["model.threads=3"], 3, 3),
        (["serving.parallel_batches=2"], 0, 8),
        (["serving.parallel_batches=40"], 0, 1),
    ]
    for sets, threads, graph_threads in cases:
        assert serve("--port", "0", *(part for one in sets for part in ("--set", one))).exit_code == 0
        ran[-1][-1]("v1")
        assert (asked[-1]["threads"], asked[-1]["graph_threads"]) == (threads, graph_threads)
    # The heads' own products are too small for threads.
    assert blas == [1] * len(cases)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--set", "serving.prot=1"], "serving.port"),
        (["--set", "serving.port"], "section.name=value"),
        (["--port", "70000"], "serving.port"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--set", "stream.url=carrier-pigeon://x"], "carrier-pigeon"),
        (["--port", "many"], "port"),
    ],
)
def test_wrong_usage_ends_with_2(serve, ran, arguments, part):
    result = serve("--port", "0", *arguments) if "--port" not in arguments else serve(*arguments)
    assert result.exit_code == 2, result.output
    assert part in result.stderr
    assert not ran


def test_a_port_that_is_taken_ends_with_1(serve, ran):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = serve("--port", str(port))
    assert result.exit_code == 1
    assert f"cannot listen at 127.0.0.1:{port}" in result.stderr
    assert "--port" in result.stderr
    assert not ran


def test_a_host_that_nobody_knows_ends_with_1(serve, ran):
    result = serve("--host", "256.1.1.1", "--port", "0", "--set", f"serving.allow_anonymous={ALLOW_ANONYMOUS}")
    assert result.exit_code == 1
    assert "cannot listen at 256.1.1.1:0" in result.stderr


def test_a_stream_or_registry_that_cannot_be_opened_ends_with_1(serve, ran):
    Path("file").write_text("not a folder")
    for setting in ("stream.url=sqlite:file/stream.db", "registry.url=file/registry"):
        result = serve("--port", "0", "--set", setting)
        assert result.exit_code == 1, result.output
        assert result.stderr.startswith("perdure serve: ")
        assert "file" in result.stderr
    assert not ran


def test_an_address_of_version_6_has_brackets_in_its_url():
    try:
        listener = listen("::1", 0)
    except OSError:
        pytest.skip("this machine has no IPv6")
    with listener:
        assert url_of(listener) == f"http://[::1]:{listener.getsockname()[1]}"


def test_the_help_is_for_newcomers(serve):
    result = serve("--help")
    assert result.exit_code == 0
    for part in ("--config", "--set", "--host", "--port", "perdure fit", "Exit codes"):
        assert part in " ".join(result.stdout.split())


def test_versions_are_loaded_through_the_cache(registry, publish, monkeypatch):
    publish(registry, "v1")
    asked = []
    double = SimpleNamespace(load_classifier=lambda *given, **named: asked.append((given, named)))
    monkeypatch.setitem(sys.modules, "perdure.model.classifier", double)
    command.loader(Settings(), registry)("v1")
    command.loader(Settings().with_values({"model.name": "./encoder", "model.batch": 5}), registry)("v1")
    (folder, version), named = asked[0]
    assert version == "v1"
    assert (folder / "model.json").read_bytes() == b"{}"
    assert named == {"batch": 32, "encoder": None}
    assert asked[1][1] == {"batch": 5, "encoder": "./encoder"}
    with pytest.raises(RegistryError, match="v2"):
        command.loader(Settings(), registry)("v2")
    publish(registry, "v3", parent="v1")
    os.utime(folder, (0, 0))
    command.loader(Settings(), registry)("v3")
    assert not folder.exists(), "a copy that nobody uses any more"
