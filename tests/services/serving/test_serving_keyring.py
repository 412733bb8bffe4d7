"""The keys that a process knows: how it follows their file, and what it compares."""

from __future__ import annotations

import json
import logging
import os
import time
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry

from perdure.errors import SettingError
from perdure_services.keys import issue, remove_key
from perdure_services.serving import keyring as keyring_module
from perdure_services.serving.keyring import LOOK_SECONDS, Keyring
from perdure_services.serving.token_bucket import TokenBucket

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def bearer(text):
    return {"Authorization": f"Bearer {text}"}


def predict(client, headers=None):
    return client.post("/v1/predict", json={"text": "a refund"}, headers=headers or {})


def series(client, name):
    found = client.app.state.service.metrics.text().decode()
    return sum(float(line.rsplit(" ", 1)[1]) for line in found.splitlines() if line.startswith(name))


def test_the_digests_are_compared_in_constant_time_whatever_is_known(make, file, monkeypatch):
    text = make()
    keyring = Keyring(file, CollectorRegistry())
    compared = []

    def compare(one, two):
        compared.append((len(one), len(two)))
        return one == two

    monkeypatch.setattr(keyring_module.hmac, "compare_digest", compare)
    stranger = issue("x", ("predict",), created=NOW).text
    assert keyring.find(text.encode()).name == "web"
    assert keyring.find(stranger.encode()) is None
    assert keyring.find((text[:21] + stranger[21:]).encode()) is None
    assert keyring.find(text.encode() + b"0" * 50_000) is None
    assert compared == [(32, 32)] * 3, "and what is no key costs no hash"


def test_keys_rotate_without_a_restart(guarded, make, file, looked, caplog):
    caplog.set_level(logging.INFO)
    old = make("web-1")
    with guarded() as client:
        assert predict(client, bearer(old)).status_code == 200
        new = make("web-2")
        assert predict(client, bearer(new)).status_code == 200
        assert predict(client, bearer(old)).status_code == 200
        assert series(client, "perdure_keys ") == 2
        remove_key(file, "web-1")
        assert predict(client, bearer(old)).status_code == 401
        assert predict(client, bearer(new)).status_code == 200
        remove_key(file, "web-2")
        assert predict(client, bearer(new)).status_code == 401
        assert predict(client).status_code == 401, "no keys is not the same as no file of keys"
        assert series(client, "perdure_keys ") == 0
    assert "now holds 2 API keys" in caplog.text


@pytest.mark.parametrize("how", ["broken", "gone", "a folder"])
def test_a_file_that_breaks_leaves_the_keys_that_were_known(guarded, make, file, looked, caplog, how):
    text = make()
    good = file.read_bytes()
    with guarded() as client:
        assert series(client, "perdure_keys_file_failing ") == 0
        file.unlink()
        if how == "broken":
            file.write_bytes(good[:-9])
        elif how == "a folder":
            file.mkdir()
        for _ in range(3):
            assert predict(client, bearer(text)).status_code == 200
            assert predict(client).status_code == 401
        assert series(client, "perdure_keys_file_failing ") == 1
        assert [record.levelno for record in caplog.records if "keys known so far go on" in record.message] == [40]
        if how == "a folder":
            file.rmdir()
        file.write_bytes(good)
        os.utime(file, (1, 1))
        assert predict(client, bearer(text)).status_code == 200
        assert series(client, "perdure_keys_file_failing ") == 0


@pytest.mark.parametrize("content", [None, b"{"])
def test_a_file_that_cannot_be_used_at_the_start_stops_the_start(guarded, file, content):
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingError, match=r"keys\.json"), guarded():
        pass


def test_the_file_is_looked_at_once_a_second_and_read_only_when_it_changed(make, file, monkeypatch):
    text = make().encode()
    reads, looks, clock = [], [], [100.0]
    keyring = Keyring(file, CollectorRegistry(), clock=lambda: clock[0])
    read, signature = keyring_module.read_keys, Keyring._signature
    monkeypatch.setattr(keyring_module, "read_keys", lambda path: reads.append(path) or read(path))
    monkeypatch.setattr(Keyring, "_signature", lambda self: looks.append(1) or signature(self))
    for step in range(11):
        clock[0] = 100.0 + step * LOOK_SECONDS / 4
        assert keyring.find(text) is not None
    assert (len(looks), len(reads)) == (2, 0)
    remove_key(file, "web")
    assert keyring.find(text) is not None
    clock[0] += LOOK_SECONDS
    assert keyring.find(text) is None
    assert len(reads) == 1


def test_a_change_that_keeps_size_and_time_is_seen(make, file):
    one = make("a")
    clock = [0.0]
    keyring = Keyring(file, CollectorRegistry(), clock=lambda: clock[0])
    before = file.stat()
    document = json.loads(file.read_text())
    other = issue("b", ("predict",), created=NOW)
    document["keys"][0] |= {"id": other.key.id, "sha256": other.key.sha256}
    time.sleep(0.02)
    with file.open("r+") as out:
        out.write(json.dumps(document, indent=1) + "\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = file.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    clock[0] = LOOK_SECONDS
    assert keyring.find(other.text.encode()) is not None
    assert keyring.find(one.encode()) is None


def test_a_bucket_refills_with_time_up_to_its_burst():
    bucket = TokenBucket(2.0, 3.0, 10.0)
    assert [bucket.take(10.0) for _ in range(3)] == [0.0] * 3
    assert bucket.take(10.0) == pytest.approx(0.5)
    assert bucket.take(10.25) == pytest.approx(0.25)
    assert bucket.take(10.5) == 0.0
    assert bucket.take(10.5) == pytest.approx(0.5)
    assert [bucket.take(1000.0) for _ in range(3)] == [0.0] * 3
    assert bucket.take(1000.0) > 0
