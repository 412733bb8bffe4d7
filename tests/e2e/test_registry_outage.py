"""Real processes whose object store goes away and comes back."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from perdure.registry import Registry

from ..s3_faults import FaultProxy, Refused, Request

pytestmark = [pytest.mark.e2e, pytest.mark.s3]

TOPICS = {
    "refund": "refund money back pay",
    "parcel": "parcel late order where",
    "login": "password login account email",
}
FILLERS = ["is", "my", "the", "a", "i", "want", "to", "please", "help", "can", "you", "not"]
PERDURE = str(Path(sys.executable).with_name("perdure"))


@dataclass
class Shop:
    """A working folder whose registry is a bucket."""

    folder: Path
    bucket: Any
    environ: dict[str, str]
    begun: list[subprocess.Popen[str]] = field(default_factory=list)

    def perdure(self, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PERDURE, *arguments, "--config", str(self.folder / "perdure.yaml")],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environ, **environ},
            timeout=200,
        )

    def rows(self, name: str, *labels: str) -> str:
        rng = random.Random(name)
        rows = [
            {"text": " ".join(rng.sample(TOPICS[label].split(), 2) + rng.sample(FILLERS, 4)), "label": label}
            for label in labels
            for _ in range(40)
        ]
        (self.folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return name

    def serve(self, folder: Path) -> tuple[httpx.Client, subprocess.Popen[str], str]:
        """A replica with its own spool and cache in `folder`, and the line that it said when it was ready."""
        folder.mkdir(exist_ok=True)
        with (folder / "serve.log").open("wb") as errors:
            process = subprocess.Popen(
                [PERDURE, "serve", "--port", "0", "--config", str(self.folder / "perdure.yaml")],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=folder,
                env=self.environ,
            )
        self.begun.append(process)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert " at http://" in said, said + log_of(folder)
        address = said.partition("http://")[2].split()[0].rstrip(",")
        return httpx.Client(base_url=f"http://{address}", timeout=10), process, said


@pytest.fixture
def shop(tmp_path: Path, tiny_encoder: Path) -> Iterator[Callable[[Any], Shop]]:
    made: list[Shop] = []

    def make(bucket: Any) -> Shop:
        (tmp_path / "perdure.yaml").write_text(
            f"registry: {{url: {bucket.url!r}}}\n"
            f"model: {{name: {tiny_encoder}, features: 256, threads: 1}}\n"
            "lora: {enabled: false}\n"
            "judge: {judge_latency: false, confidence: 0.51, margin: 0.3, margin_new_labels: 1.0,\n"
            "  new_label_recall: 0.0, group_margin: 1.0, negative_flips: 1.0, calibration: 1.0,\n"
            "  prediction_shift: 1.0, drift_min_rows: 1000000}\n"
            "serving: {refresh_seconds: 0.2}\n",
            encoding="utf-8",
        )
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "AWS_"))}
        made.append(Shop(tmp_path, bucket, {**kept, **bucket.environment, "OMP_NUM_THREADS": "1"}))
        return made[-1]

    yield make
    for one in made:
        for process in one.begun:
            process.kill()
            process.wait(10)
            assert process.stdout is not None
            process.stdout.close()


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


def test_serving_goes_on_without_its_store_and_follows_it_when_it_returns(
    shop: Callable[[Any], Shop], own_s3_bucket: Any, own_s3_server: Any, tmp_path: Path
) -> None:
    place = shop(own_s3_bucket)
    fitted = place.perdure("fit", "--data", place.rows("rows.jsonl", "refund", "parcel"))
    assert fitted.returncode == 0, fitted.stderr
    registry = Registry.over(own_s3_bucket.backend)
    first = registry.card("v000001-head")
    files = {name: registry.read(first.name, name) for name in first.files}
    registry.write(first.model_copy(update={"name": "v000002-head", "parent": first.name}), files)
    client, process, _ = place.serve(tmp_path / "first")
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
    second, _, said = place.serve(tmp_path / "second")
    assert said.startswith("Perdure serves version v000001-head at ")
    assert "version v000001-head of promotion 1 serves from its local copy" in log_of(tmp_path / "second")
    assert second.get("/readyz").status_code == 200
    assert served_by(second) == "v000001-head"
    third, _, said = place.serve(tmp_path / "third")
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


def test_a_turn_whose_store_goes_away_in_the_middle_goes_on_where_it_was(
    shop: Callable[[Any], Shop], s3_bucket: Any, s3_server: Any, tmp_path: Path
) -> None:
    place = shop(s3_bucket)
    fitted = place.perdure("fit", "--data", place.rows("rows.jsonl", "refund", "parcel"))
    assert fitted.returncode == 0, fitted.stderr
    names = set(s3_bucket.names("versions"))
    more = place.rows("more.jsonl", "login", "refund")
    written: list[str] = []

    def away(request: Request) -> Refused | None:
        if request.writes:
            written.append(request.path)
        # From the third file on of the version that the turn makes.
        return Refused(503, "ServiceUnavailable") if len(written) > 2 else None

    with FaultProxy(s3_server.port, away) as proxy:
        cut = place.perdure("fit", "--data", more, AWS_ENDPOINT_URL=proxy.endpoint)
    assert cut.returncode == 1
    assert "failed at writing versions/v000002-head/" in cut.stderr
    assert "Traceback" not in cut.stderr
    registry = Registry.over(s3_bucket.backend)
    assert registry.versions() == ("v000001-head",)
    assert len(registry.promotions()) == 1
    assert set(s3_bucket.names("versions")) > names
    went_on = place.perdure("update")
    assert went_on.returncode == 0, went_on.stderr
    assert [entry.version for entry in registry.promotions()] == ["v000001-head", "v000002-head"]
    assert registry.card("v000002-head").labels == ("login", "parcel", "refund")
    registry.fetch("v000002-head", tmp_path / "fetched")
