"""Both clients over the app as it is, behind a real server."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
import uvicorn

from perdure.client import AsyncClient, Client, Said
from perdure.config import Settings
from perdure.errors import ApiBusy, ApiConflict, ApiNotFound, ApiRequestInvalid
from perdure.records import Erasure, Feedback, Interaction
from perdure_services.serving import create_app
from perdure_services.serving.server import listen, url_of

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning")


@pytest.fixture
def url_with(registry, stream, shelf):
    """Starts the app behind uvicorn."""
    started = []

    def start(keep_alive=5, **settings):
        tree = Settings().with_values({"serving.refresh_seconds": 0.02}).with_values(settings)
        app = create_app(tree, registry=registry, stream=stream, load=shelf)
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, ws="none", access_log=False, timeout_keep_alive=keep_alive)
        )
        listener = listen("127.0.0.1", 0)
        url = url_of(listener)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        started.append((server, thread))
        assert app.state.service.champions.wait_for_first_look(10)
        return url

    yield start
    for server, thread in started:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def url(registry, publish, url_with):
    publish(registry, "v1")
    return url_with()


def test_the_whole_story(url, registry, publish, stream, records, until):
    with Client(url) as api:
        until(lambda: api.ready().ready)
        one = api.predict("where is my order", subject="anna")
        assert (one.label, one.version, one.recorded, one.top) == ("order@v1", "v1", True, ())
        two = api.predict(["a refund", "my password"], top=2)
        assert [answer.label for answer in two] == ["refund@v1", "login@v1"]
        assert [len(answer.top) for answer in two] == [2, 2]
        assert two[0].top[0].label == "refund@v1"
        assert two[0].top[0].confidence == two[0].confidence > two[0].top[1].confidence
        assert api.feedback(one.id, "refund", source="desk").recorded
        (said,) = (record for record in records(stream) if isinstance(record, Feedback))
        assert (said.interaction, said.label, said.source) == (one.id, "refund", "desk")
        assert api.feedback([Said(answer.id, "login") for answer in two]).recorded

        publish(registry, "v2", promote=False, parent="v1")
        promoted = api.promote("v2", reason="a better one")
        assert (promoted.promotion.number, promoted.promotion.version) == (2, "v2")
        assert (promoted.promotion.kind, promoted.promotion.reason) == ("promote", "a better one")
        until(lambda: api.predict("order").version == "v2")
        listed = api.versions()
        assert listed.champion == promoted.promotion
        assert listed.serving.version == "v2"
        assert [version.name for version in listed.versions] == ["v1", "v2"]
        assert listed.versions[1].parent == "v1"
        assert listed.versions[1].metrics == {"accuracy": 0.5}
        assert [entry.version for entry in listed.promotions] == ["v1", "v2"]
        back = api.rollback()
        assert (back.promotion.version, back.promotion.kind) == ("v1", "rollback")

        erased = api.forget("anna")
        # The prediction, and what was said of it.
        assert (erased.subject, erased.removed) == ("anna", 2)
        assert "memory" in erased.message
    found = records(stream)
    said = {record.interaction: (record.label, record.source) for record in found if isinstance(record, Feedback)}
    assert said == {two[0].id: ("login", "user"), two[1].id: ("login", "user")}
    assert one.id not in {record.id for record in found if isinstance(record, Interaction)}
    assert [record.subject for record in found if isinstance(record, Erasure)] == ["anna"]


def test_the_same_for_asyncio(url, stream, records):
    async def main():
        async with AsyncClient(url) as api:
            assert (await api.ready()).ready
            answers = await asyncio.gather(*(api.predict(f"order {number}") for number in range(20)))
            assert (await api.feedback([Said(answer.id, "refund") for answer in answers])).recorded
            assert len(await api.predict(["order", "refund"])) == 2
            assert (await api.versions()).champion.version == "v1"
            assert (await api.promote("v1", reason="again")).promotion.number == 2
            with pytest.raises(ApiConflict):
                await api.rollback()
            assert (await api.forget("nobody")).removed == 0
            return {answer.id for answer in answers}

    ids = asyncio.run(main())
    assert len(ids) == 20
    assert {record.interaction for record in records(stream) if isinstance(record, Feedback)} == ids


def test_refusals_say_what_the_api_says(url):
    with Client(url) as api:
        with pytest.raises(ApiRequestInvalid, match="empty") as caught:
            api.predict("  ")
        assert caught.value.status == 422
        with pytest.raises(ApiRequestInvalid, match="surrogate"):
            api.predict("half \ud800")
        with pytest.raises(ApiRequestInvalid) as caught:
            api.predict("x" * 1_000_001)
        assert caught.value.status == 413
        with pytest.raises(ApiRequestInvalid):
            api.predict([])
        with pytest.raises(ApiRequestInvalid):
            api.feedback([Said("id", "order")] * 1001)
        with pytest.raises(ApiNotFound, match="v9"):
            api.promote("v9")
        with pytest.raises(ApiConflict) as caught:
            api.rollback()
        assert caught.value.status == 409
        assert caught.value.do


@pytest.mark.parametrize("subject", ["anna/../bert", "..", "a b", "ü?#%2F", "/"])
def test_every_subject_reaches_the_api_as_it_is(url, subject, stream, records):
    with Client(url) as api:
        assert api.forget(subject).subject == subject
    assert [record.subject for record in records(stream) if isinstance(record, Erasure)] == [subject]


def test_nothing_to_serve_is_not_ready_and_busy(url_with):
    with Client(url_with(), deadline=0.5) as api:
        unready = api.ready()
        assert not unready.ready
        assert "perdure fit" in unready.reason
        with pytest.raises(ApiBusy) as caught:
            api.predict("order")
        assert caught.value.status == 503


def test_what_had_to_be_repeated_is_served_once_there_is_a_version(url_with, registry, publish):
    with Client(url_with(), deadline=10, tries=100) as api:
        late = threading.Timer(0.3, publish, (registry, "v1"))
        late.start()
        assert api.predict("order").version == "v1"
        late.join()


def test_connections_that_the_server_closes_do_no_harm(registry, publish, url_with, stream, records):
    """Uvicorn closes idle connections after a second here, which is sooner than the client expects."""
    publish(registry, "v1")
    url = url_with(keep_alive=1)
    with Client(url, tries=1) as api:
        for pause in (0.95, 1.0, 1.05, 0.0):
            api.predict("order")
            time.sleep(pause)
    assert sum(isinstance(record, Interaction) for record in records(stream)) == 4


def test_the_api_knows_how_long_the_client_waits(registry, publish, listening):
    publish(registry, "v1")
    url, service = listening()
    check, left = service.batcher.check, []

    def noted(deadline):
        left.append(deadline - time.monotonic())
        check(deadline)

    service.batcher.check = noted
    with Client(url, timeout=3.0) as api:
        assert api.predict("order").version == "v1"
    with Client(url, timeout=60.0, deadline=60.0) as api:
        api.predict("order")
    # Never more than the server allows.
    assert left == [pytest.approx(3, abs=1), pytest.approx(30, abs=2)]
