"""Under steady load over real HTTP, promotions and a rollback must not cost a request."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import uvicorn

from perdure.config import Settings
from perdure.records import Interaction
from perdure_services.serving import create_app
from perdure_services.serving.server import listen, url_of

RATE = 100
"""Requests a second."""

SECONDS = 3.0


@pytest.fixture
def url(registry, stream, shelf):
    settings = Settings().with_values({"serving.refresh_seconds": 0.05})
    app = create_app(settings, registry=registry, stream=stream, load=shelf)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none", access_log=False))
    listener = listen("127.0.0.1", 0)
    url = url_of(listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    assert app.state.service.champions.wait_for_first_look(10)
    yield url
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def test_no_request_fails_while_versions_are_promoted_and_rolled_back(registry, publish, stream, records, url):
    publish(registry, "v1")
    for name in ("v2", "v3", "v4"):
        publish(registry, name, promote=False)
    answers = []
    numbers = itertools.count()
    with httpx.Client(base_url=url) as client, ThreadPoolExecutor(8) as pool:
        while client.get("/readyz").status_code != 200:
            time.sleep(0.01)

        def ask():
            number = next(numbers)
            texts = [f"order {number}", f"password {number}", f"refund {number}"][: number % 3 + 1]
            response = client.post("/v1/predict", json={"texts": texts})
            answers.append((response.status_code, texts, response.json()))

        changes = {
            0.2: lambda: client.post("/v1/versions/v2/promote"),
            0.4: lambda: client.post("/v1/versions/v3/promote"),
            0.6: lambda: client.post("/v1/rollback"),
            0.8: lambda: client.post("/v1/versions/v4/promote"),
        }
        begin = time.monotonic()
        futures = []
        total = int(RATE * SECONDS)
        for tick in range(total):
            time.sleep(max(0.0, begin + tick / RATE - time.monotonic()))
            futures.append(pool.submit(ask))
            change = changes.pop(round(tick / total, 6), None)
            if change:
                futures.append(pool.submit(lambda change=change: change().raise_for_status()))
        for future in futures:
            future.result(10)
        assert not changes
        metrics = client.get("/metrics").text
    assert len(answers) == total
    assert Counter(status for status, _, _ in answers) == {200: total}
    seen = Counter()
    for _, texts, answer in answers:
        version = answer["version"]
        seen[version] += 1
        labels = [f"{label}@{version}" for label in ("order", "login", "refund")][: len(texts)]
        assert [one["label"] for one in answer["predictions"]] == labels, "an answer mixed two versions"
        assert {one["version"] for one in answer["predictions"]} == {version}
    assert set(seen) == {"v1", "v2", "v3", "v4"}
    assert [(entry.version, entry.kind) for entry in registry.promotions()] == [
        ("v1", "promote"),
        ("v2", "promote"),
        ("v3", "promote"),
        ("v2", "rollback"),
        ("v4", "promote"),
    ]
    assert "perdure_swaps_total 5.0" in metrics
    predictions = [one for _, _, answer in answers for one in answer["predictions"]]
    assert all(one["recorded"] for one in predictions)
    stored = {record.id: record for record in records(stream)}
    assert len(stored) == len(records(stream)) == len(predictions), "each exactly once"
    for one in predictions:
        record = stored[one["id"]]
        assert isinstance(record, Interaction)
        assert (record.version, record.label) == (one["version"], one["label"])
