"""Everything that goes wrong on the way, with a real socket at the other end."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import pytest

from perdure.client import AsyncClient, Client, Said
from perdure.errors import (
    ApiAnswerUnreadable,
    ApiBusy,
    ApiOutcomeUnknown,
    ApiTimeout,
    ApiUnreachable,
)

pytestmark = pytest.mark.filterwarnings("error::ResourceWarning")


# ── what is repeated ──
@pytest.mark.parametrize("fault", ["reset", "silent", "half"])
def test_a_prediction_is_asked_for_again_when_the_connection_breaks(api, acts, client, fault):
    api.script = [getattr(acts, fault), getattr(acts, fault), acts.good]
    assert client.predict("order").id == "id-1"
    assert len(api.asked) == 3
    assert {asked.body for asked in api.asked} == {b'{"text":"order"}'}


@pytest.mark.parametrize("fault", ["reset", "silent", "half"])
def test_a_connection_that_always_breaks_is_given_up(api, acts, client_of, fault):
    api.script = [getattr(acts, fault)]
    with pytest.raises(ApiUnreachable, match=r"predict: the connection .* broke .* 3 tries"):
        client_of(tries=3).predict("order")
    assert len(api.asked) == 3


def test_feedback_forget_and_versions_are_repeated(api, acts, client):
    versions = {"champion": None, "serving": None, "problem": None, "promotions": [], "versions": []}
    erased = {"subject": "anna", "removed": 2, "message": "gone"}
    api.script = [acts.reset, acts.answer({"recorded": True}, 202)]
    assert client.feedback("id-1", "refund").recorded
    assert [asked.fields for asked in api.asked] == [{"id": "id-1", "label": "refund"}] * 2
    api.script += [acts.silent, acts.answer({"recorded": False}, 202)]
    assert not client.feedback([Said("id-1", "refund"), Said("id-2", "order", "desk")]).recorded
    api.script += [acts.half, acts.answer(erased, 202)]
    assert client.forget("anna").removed == 2
    api.script += [acts.reset, acts.answer(versions)]
    assert client.versions().versions == ()
    assert len(api.asked) == 8


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_not_now_is_asked_again(api, acts, client, status):
    api.script = [acts.answer(b"later", status), acts.good]
    assert client.predict("order").label == "order"
    assert len(api.asked) == 2
    assert api.asked[0].connection == api.asked[1].connection


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500])
def test_a_plain_no_is_not_asked_again(api, acts, client, status):
    api.script = [acts.answer({}, status), acts.good]
    with pytest.raises(Exception, match=f"refused predict with {status}"):
        client.predict("order")
    assert len(api.asked) == 1


def test_a_refused_connection_is_tried_again(acts, api, client_of, free_port):
    with pytest.raises(ApiUnreachable, match=r"no connection .* 2 tries .*Nothing was sent"):
        client_of(f"http://127.0.0.1:{free_port}", tries=2).predict("order")


@pytest.mark.parametrize("ask", [lambda api: api.predict("order"), lambda api: api.promote("v2")])
def test_a_server_that_comes_a_moment_later_is_found(acts, client_of, free_port, ask):
    """Nothing was sent, so even a promotion may be tried again."""
    answers = acts.raw({**acts.PREDICTION, **acts.PROMOTED})

    def come():
        time.sleep(0.15)
        with socket.create_server(("127.0.0.1", free_port)) as listener:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(answers)
                connection.recv(1)

    late = threading.Thread(target=come)
    late.start()
    client = client_of(f"http://127.0.0.1:{free_port}", tries=1000, deadline=5)
    assert ask(client)
    client.close()
    late.join(5)
    assert not late.is_alive()


# ── what is not ──
@pytest.mark.parametrize("fault", ["reset", "silent", "half"])
@pytest.mark.parametrize(
    "ask", [lambda api: api.promote("v2"), lambda api: api.rollback()], ids=["promote", "rollback"]
)
def test_what_must_not_be_done_twice_is_sent_once(api, acts, client, fault, ask):
    api.script = [getattr(acts, fault), acts.promoted]
    with pytest.raises(ApiOutcomeUnknown, match=r"may have been done, and is not sent twice: look at versions\(\)"):
        ask(client)
    assert len(api.asked) == 1


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_a_promotion_that_failed_in_the_server_is_not_repeated(api, acts, client, status):
    api.script = [acts.answer({}, status, "Retry-After: 0"), acts.promoted]
    with pytest.raises(Exception, match="may have been done all the same"):
        client.promote("v2")
    assert len(api.asked) == 1


def test_a_promotion_that_was_not_taken_is_repeated(api, acts, client):
    api.script = [acts.answer({}, 429, "Retry-After: 0"), acts.promoted]
    assert client.promote("v2", reason="why").promotion.number == 2
    assert [asked.fields for asked in api.asked] == [{"reason": "why"}] * 2


def test_a_promotion_without_an_answer_in_time_is_not_repeated(api, acts, client_of):
    api.script = [acts.hang]
    with pytest.raises(ApiOutcomeUnknown, match="it took too long"):
        client_of(timeout=0.1).promote("v2")
    assert len(api.asked) == 1


# ── connections ──
def test_a_connection_is_used_again(api, acts, client):
    api.script = [acts.good]
    for _ in range(3):
        client.predict("order")
    assert api.connections == 1


def test_a_connection_that_was_closed_while_idle_is_not_even_tried(api, acts, client_of, caplog):
    caplog.set_level("INFO", logger="perdure")
    client = client_of(tries=1)
    api.script = [acts.good_and_gone, acts.good]
    client.predict("order")
    while api.closed < 1:
        time.sleep(0.005)
    assert client.predict("order").id == "id-1"
    assert len(api.asked) == 2
    assert caplog.text == "", "something had to be repeated"


@pytest.mark.parametrize("fault", ["reset", "silent"])
def test_a_connection_that_is_closed_at_that_very_moment_does_no_harm(api, acts, client_of, fault):
    """The request was on its way when the server closed: that uses up no try, and takes no pause."""
    client = client_of(tries=1)
    api.script = [acts.good, getattr(acts, fault), acts.good]
    client.predict("order")
    assert client.predict("order").id == "id-1"
    assert [asked.connection for asked in api.asked] == [1, 1, 2]


def test_a_new_connection_that_breaks_does_use_up_a_try(api, acts, client_of):
    api.script = [acts.silent, acts.good]
    with pytest.raises(ApiUnreachable):
        client_of(tries=1).predict("order")


def test_half_an_answer_over_an_old_connection_does_use_up_a_try(api, acts, client_of):
    api.script = [acts.good, acts.half, acts.good]
    client = client_of(tries=1)
    client.predict("order")
    with pytest.raises(ApiUnreachable):
        client.predict("order")


def test_promotions_never_travel_over_a_connection_that_idled(api, acts, client):
    api.script = [acts.good, acts.promoted, acts.promoted, acts.good]
    client.predict("order")
    client.promote("v2")
    client.rollback()
    client.predict("order")
    assert [asked.connection for asked in api.asked] == [1, 2, 3, 3]


def test_readiness_is_asked_once_but_not_over_a_dead_connection(api, acts, client):
    ready = acts.answer({"ready": True, "reason": "serving"})
    api.script = [ready, acts.silent, ready, acts.answer({"ready": False, "reason": "starting"}, 503)]
    assert client.ready().ready
    assert client.ready().ready
    unready = client.ready()
    assert (unready.ready, unready.reason) == (False, "starting")
    assert len(api.asked) == 4


def test_what_cannot_be_reached_is_not_ready(client_of, free_port):
    unready = client_of(f"http://127.0.0.1:{free_port}").ready()
    assert not unready.ready
    assert "1 try" in unready.reason


# ── time ──
def test_retry_after_in_seconds_is_waited_for(api, acts, client):
    api.script = [acts.answer({}, 503, "Retry-After: 1"), acts.good]
    client.predict("order")
    assert 1.0 <= api.asked[1].at - api.asked[0].at < 3.0


def test_retry_after_as_a_date_is_waited_for(api, acts, client):
    """By the server's clock, which is an hour slow."""
    there = time.time() - 3600
    headers = (f"Date: {formatdate(there, usegmt=True)}", f"Retry-After: {formatdate(there + 1, usegmt=True)}")
    api.script = [acts.answer({}, 429, *headers), acts.good]
    client.predict("order")
    assert 0.99 <= api.asked[1].at - api.asked[0].at < 3.0


def test_a_retry_after_beyond_the_deadline_is_not_waited_for(api, acts, client_of):
    api.script = [acts.answer({}, 503, "Retry-After: 60")]
    begun = time.monotonic()
    with pytest.raises(ApiBusy) as caught:
        client_of(deadline=5).predict("order")
    assert time.monotonic() - begun < 2
    assert caught.value.retry_after == 60
    assert len(api.asked) == 1


def test_a_server_that_hangs_is_left_at_the_deadline(api, acts, client_of):
    api.script = [acts.hang]
    begun = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        client_of(timeout=0.2, deadline=0.7, tries=100).predict("order")
    assert 0.55 < time.monotonic() - begun < 3
    assert isinstance(caught.value, ApiTimeout)
    assert len(api.asked) >= 3


@pytest.mark.parametrize("head", [True, False], ids=["head", "body"])
def test_an_answer_that_drips_in_is_left_at_the_deadline(api, acts, client_of, head):
    api.script = [acts.drip(head=head)]
    begun = time.monotonic()
    with pytest.raises(ApiTimeout):
        client_of(timeout=0.4, tries=1).predict("order")
    assert 0.35 < time.monotonic() - begun < 4


def test_a_server_that_does_not_read_is_left_at_the_deadline(client_of):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        client = client_of(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout=0.4, tries=1)
        begun = time.monotonic()
        with pytest.raises(ApiTimeout):
            client.predict("x" * 20_000_000)
        client.close()
    assert time.monotonic() - begun < 3


def test_waiting_for_a_connection_counts(api, acts):
    api.script = [acts.hang]
    with Client(api.url, timeout=1.0, tries=1, connections=1) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.predict, "order")
        time.sleep(0.5)
        # Half a second until the first gives up its connection, and half a second for the server.
        begun = time.monotonic()
        with pytest.raises(ApiTimeout):
            client.predict("refund")
        assert 0.9 < time.monotonic() - begun < 1.45
        assert isinstance(first.exception(), ApiTimeout)
    assert len(api.asked) == 2


def test_no_connection_that_comes_free_is_told(api, acts):
    api.script = [acts.hang]
    with Client(api.url, timeout=0.5, tries=1, connections=1) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.predict, "order")
        while not api.asked:
            time.sleep(0.005)
        with Client(api.url, timeout=0.1, tries=1) as hasty:
            hasty._slots = client._slots
            with pytest.raises(ApiUnreachable, match="all connections were in use"):
                hasty.predict("order")
        assert isinstance(first.exception(), ApiTimeout)
    assert len(api.asked) == 1


def milliseconds(asked):
    return int(asked.headers["x-request-timeout-ms"])


def test_the_api_is_told_how_long_each_try_may_take(api, acts, client_of):
    api.script = [acts.hang, acts.good]
    client_of(timeout=1.0, deadline=1.5).predict("order")
    first, second = map(milliseconds, api.asked)
    assert 500 < first <= 1000
    # Of the whole call no more is left.
    assert 1 <= second <= 500


def test_a_time_beyond_all_is_told_in_twelve_digits(api, acts, client_of):
    api.script = [acts.good]
    client_of(timeout=5e9, deadline=5e9).predict("order")
    assert milliseconds(api.asked[0]) == 999_999_999_999


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_time_that_waiting_for_a_connection_took_is_not_told(api, acts, kind):
    def slow(connection, server):
        time.sleep(0.3)
        return acts.good(connection, server)

    async def both():
        async with AsyncClient(api.url, timeout=2.0, connections=1) as client:
            await asyncio.gather(client.predict("order"), client.predict("order"))

    api.script = [slow]
    if kind is AsyncClient:
        asyncio.run(both())
    else:
        with Client(api.url, timeout=2.0, connections=1) as client, ThreadPoolExecutor(2) as pool:
            list(pool.map(client.predict, ["order", "order"]))
    first, second = map(milliseconds, api.asked)
    assert 1000 < first <= 2000
    assert 1 <= second <= 1750


# ── answers that are none ──
@pytest.mark.parametrize(
    ("fields", "part"),
    [
        (b"<html>hello</html>", "Invalid JSON"),
        ({"id": "id-1", "label": "order"}, "confidence: Field required"),
        ([], "Input should be"),
    ],
)
def test_an_answer_that_is_not_of_this_api_is_told(api, acts, client, fields, part):
    api.script = [acts.answer(fields)]
    with pytest.raises(ApiAnswerUnreadable, match=part) as caught:
        client.predict("order")
    assert api.url in str(caught.value)
    assert "pydantic.dev" not in str(caught.value)


def test_predictions_that_do_not_match_the_texts_are_told(api, acts, client):
    api.script = [acts.answer({"predictions": [acts.PREDICTION], "version": "v1"})]
    with pytest.raises(ApiAnswerUnreadable, match="1 predictions for 2 texts"):
        client.predict(["order", "refund"])


def test_something_that_does_not_speak_http_is_told(api, acts, client_of):
    def greet(connection, server):
        connection.sendall(b"220 mail.example ESMTP\r\n")
        return False

    api.script = [greet]
    with pytest.raises(ApiUnreachable, match="broke before the answer"):
        client_of(tries=1).predict("order")
