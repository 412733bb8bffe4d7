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

from perdure.client import Client
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
    # One try each: what fails is not hidden by another.
    with Client(url, tries=1) as api, ThreadPoolExecutor(8) as pool:
        while not api.ready().ready:
            time.sleep(0.01)

        def ask():
            number = next(numbers)
            texts = [f"order {number}", f"password {number}", f"refund {number}"][: number % 3 + 1]
            answers.append((texts, api.predict(texts)))

        changes = {
            0.2: lambda: api.promote("v2"),
            0.4: lambda: api.promote("v3"),
            0.6: api.rollback,
            0.8: lambda: api.promote("v4"),
        }
        begin = time.monotonic()
        futures = []
        total = int(RATE * SECONDS)
        for tick in range(total):
            time.sleep(max(0.0, begin + tick / RATE - time.monotonic()))
            futures.append(pool.submit(ask))
            change = changes.pop(round(tick / total, 6), None)
            if change:
                futures.append(pool.submit(change))
        for future in futures:
            future.result(10)
        assert not changes
        metrics = httpx.get(f"{url}/metrics", trust_env=False).text
    assert len(answers) == total
    seen = Counter()
    for texts, found in answers:
        (version,) = {one.version for one in found}
        seen[version] += 1
        labels = [f"{label}@{version}" for label in ("order", "login", "refund")][: len(texts)]
        assert [one.label for one in found] == labels, "an answer mixed two versions"
    assert set(seen) == {"v1", "v2", "v3", "v4"}
    assert [(entry.version, entry.kind) for entry in registry.promotions()] == [
        ("v1", "promote"),
        ("v2", "promote"),
        ("v3", "promote"),
        ("v2", "rollback"),
        ("v4", "promote"),
    ]
    assert "perdure_swaps_total 5.0" in metrics
    predictions = [one for _, found in answers for one in found]
    assert all(one.recorded for one in predictions)
    stored = {record.id: record for record in records(stream)}
    assert len(stored) == len(records(stream)) == len(predictions), "each exactly once"
    for one in predictions:
        record = stored[one.id]
        assert isinstance(record, Interaction)
        assert (record.version, record.label) == (one.version, one.label)
