"""Real processes whose object store goes away and comes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from perdure.config import Settings
from perdure.errors import RegistryUnavailable

from ..s3_faults import AnswerReplaced, Fault, FaultProxy, Refused, Request

pytestmark = pytest.mark.s3

PERDURE = str(Path(sys.executable).with_name("perdure"))
LENIENT = {
    "judge.confidence": 0.51,
    "judge.margin": 1.0,
    "judge.new_label_recall": 0.0,
    "judge.negative_flips": 1.0,
    "judge.calibration": 1.0,
    "judge.prediction_shift": 1.0,
    "judge.min_rows": 2,
    "judge.drift_min_rows": 10_000,
    "lora.enabled": False,
}
"""Whether the versions are good is not the question here."""
DOTTED = {name.replace(".", "__"): value for name, value in LENIENT.items()}


class Replicas:
    """`perdure serve`, as often as a test wants."""

    def __init__(self, settings: Settings, environ: dict[str, str]) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "AWS_"))}
        places = {
            "PERDURE_REGISTRY__URL": settings.registry.url,
            "PERDURE_MODEL__THREADS": "1",
            "PERDURE_SERVING__REFRESH_SECONDS": "0.2",
        }
        self._environ = {**kept, **places, **environ, "OMP_NUM_THREADS": "1"}
        self._begun: list[subprocess.Popen[str]] = []

    def start(self, folder: Path) -> tuple[httpx.Client, subprocess.Popen[str], str]:
        """One with its stream and cache in `folder`, and the line that it said when it was ready."""
        folder.mkdir(exist_ok=True)
        with (folder / "serve.log").open("wb") as errors:
            process = subprocess.Popen(
                [PERDURE, "serve", "--port", "0"],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
                env=self._environ,
            )
        self._begun.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert " at http://" in said, said + log_of(folder)
        address = said.partition("http://")[2].split()[0].rstrip(",")
        return httpx.Client(base_url=f"http://{address}", timeout=10), process, said

    def end(self) -> None:
        for process in self._begun:
            process.kill()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


@pytest.fixture
def replicas() -> Iterator[Callable[[Settings, dict[str, str]], Replicas]]:
    made: list[Replicas] = []

    def make(settings: Settings, environ: dict[str, str]) -> Replicas:
        made.append(Replicas(settings, environ))
        return made[-1]

    yield make
    for one in made:
        one.end()


def log_of(folder: Path) -> str:
    return (folder / "serve.log").read_text(encoding="utf-8")


def served_by(client: httpx.Client) -> str:
    answer = client.post("/v1/predict", json={"text": "where is my parcel"})
    return answer.json()["version"] if answer.status_code == 200 else str(answer.status_code)


def metric(client: httpx.Client, name: str) -> float:
    families = text_string_to_metric_families(client.get("/metrics").text)
    (value,) = (one.value for family in families for one in family.samples if one.name == f"perdure_{name}")
    return value


def threads_and_files(process: subprocess.Popen[str]) -> tuple[int, int]:
    about = Path(f"/proc/{process.pid}")
    return len(list((about / "task").iterdir())), len(list((about / "fd").iterdir()))


def wait_for(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.1)


@pytest.mark.e2e
def test_serving_goes_on_without_its_store_and_follows_it_when_it_returns(
    desk_at: Callable[..., Any],
    replicas: Callable[..., Replicas],
    own_s3_bucket: Any,
    own_s3_server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in own_s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    desk = desk_at(tmp_path / "desk", registry__url=own_s3_bucket.url, model__export="int8", **DOTTED)
    desk.teach("refund", "parcel")
    assert desk.turn().champion == "v000001-head"
    registry = desk.registry()
    first = registry.card("v000001-head")
    files = {name: registry.read(first.name, name) for name in first.files}
    registry.write(first.model_copy(update={"name": "v000002-head", "parent": first.name}), files)
    serving = replicas(desk.settings, own_s3_bucket.environment)
    client, process, _ = serving.start(tmp_path / "first")
    assert served_by(client) == "v000001-head"
    assert metric(client, "registry_reachable") == 1
    before = threads_and_files(process)

    own_s3_server.kill()
    wait_for(lambda: metric(client, "registry_reachable") == 0)
    failures, read = metric(client, "registry_failures_total"), metric(client, "registry_read_timestamp_seconds")
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert served_by(client) == "v000001-head"
        assert client.get("/readyz").status_code == 200
        assert client.get("/healthz").status_code == 200
        time.sleep(0.1)
    assert metric(client, "registry_failures_total") > failures
    assert metric(client, "registry_read_timestamp_seconds") == read < time.time() - 3
    assert log_of(tmp_path / "first").count("the registry cannot be read") == 1
    # Threads of pools may come, but not one with each failure.
    assert all(now <= then + 8 for now, then in zip(threads_and_files(process), before, strict=True))

    shutil.copytree(tmp_path / "first" / "var", tmp_path / "second" / "var")
    second, _, said = serving.start(tmp_path / "second")
    assert said.startswith("Perdure serves version v000001-head at ")
    assert "version v000001-head of promotion 1 serves from its local copy" in log_of(tmp_path / "second")
    assert second.get("/readyz").status_code == 200
    assert served_by(second) == "v000001-head"
    third, _, said = serving.start(tmp_path / "third")
    assert "has nothing to serve: the registry cannot be read" in said
    assert third.get("/readyz").status_code == 503
    assert "the registry cannot be read" in third.get("/readyz").json()["reason"]
    assert third.get("/healthz").status_code == 200
    assert served_by(third) == "503"

    own_s3_server.start()
    registry.promote("v000002-head", reason="elsewhere, meanwhile", by="somebody")
    for one, folder in ((client, "first"), (second, "second"), (third, "third")):
        wait_for(lambda one=one: served_by(one) == "v000002-head")
        wait_for(lambda one=one: metric(one, "registry_reachable") == 1)
        assert "the registry can be read again" in log_of(tmp_path / folder)
        one.close()


@pytest.mark.parametrize("written", [0, 3, "card.json", "promotions/00000002.json"])
def test_a_turn_whose_store_goes_away_in_the_middle_goes_on_where_it_was(
    desk_at: Callable[..., Any],
    s3_bucket: Any,
    s3_server: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: int | str,
) -> None:
    """It goes away when so many files of the new version are there, or just when one of them has been written."""
    for name, value in s3_bucket.environment.items():
        monkeypatch.setenv(name, value)
    desk = desk_at(tmp_path / "desk", registry__url=s3_bucket.url, **DOTTED)
    desk.teach("refund", "parcel")
    assert desk.turn().champion == "v000001-head"
    desk.teach("login", name="more", at=1000.0)
    put: list[str] = []

    def away(request: Request) -> Fault | None:
        if isinstance(written, int):
            put.extend([request.path] if request.writes else [])
            return Refused(503, "ServiceUnavailable") if len(put) > written else None
        if put:
            return Refused(503, "ServiceUnavailable")
        if request.writes and request.path.endswith(written):
            put.append(request.path)
            return AnswerReplaced()
        return None

    with FaultProxy(s3_server.port, away) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        with pytest.raises(RegistryUnavailable, match="failed at writing"):
            desk.turn()
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server.endpoint)
    registry = desk.registry()
    there = written == "card.json" or str(written).startswith("promotions")
    assert registry.versions() == (("v000001-head", "v000002-head") if there else ("v000001-head",))
    assert len(registry.promotions()) == (2 if str(written).startswith("promotions") else 1)
    went_on = desk.turn()
    assert went_on.champion == "v000002-head"
    assert [entry.version for entry in registry.promotions()] == ["v000001-head", "v000002-head"]
    assert registry.card("v000002-head").labels == ("login", "parcel", "refund")
    registry.fetch("v000002-head", tmp_path / "fetched")
    # And is done with: nothing is learned twice.
    desk.turn()
    assert len(registry.promotions()) == 2
