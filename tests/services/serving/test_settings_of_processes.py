"""What is checked, shared out and reserved before several processes are started."""

from __future__ import annotations

import json
import socket
import tempfile

import pytest

from perdure.config import Settings
from perdure.errors import SettingError
from perdure_services.serving import cores
from perdure_services.serving.cores import batches_at_once, share_of, threads_of_batch
from perdure_services.serving.processes import check_shared, make_folder, reserve, spec_of
from perdure_services.serving.server import listen


@pytest.mark.parametrize(
    ("there", "processes", "asked", "share", "batches", "threads"),
    [
        (2, 1, 0, 2, 2, 1),
        (16, 1, 0, 16, 4, 4),
        (16, 2, 0, 8, 4, 2),
        (8, 3, 0, 2, 2, 1),
        (2, 4, 0, 1, 1, 1),
        (8, 1, 2, 8, 2, 4),
    ],
)
def test_cores_are_shared_out(monkeypatch, there, processes, asked, share, batches, threads):
    monkeypatch.setattr(cores, "cores", lambda: there)
    given = Settings().with_values({"serving.processes": processes, "serving.parallel_batches": asked}).serving
    assert (share_of(given), batches_at_once(given), threads_of_batch(given)) == (share, batches, threads)


@pytest.mark.parametrize("setting", ["stream.url", "registry.url"])
def test_what_is_in_the_memory_of_one_process_cannot_be_shared(setting):
    scheme = "memory:" if setting == "stream.url" else "memory://"
    with pytest.raises(SettingError, match=rf"{setting} cannot be '{scheme}' with serving.processes=2"):
        check_shared(Settings().with_values({"serving.processes": 2, setting: scheme}))


def test_workers_are_given_the_settings_and_the_time_to_end():
    given = Settings().with_values(
        {"serving.processes": 3, "serving.lame_duck_seconds": 7, "serving.drain_seconds": 20, "lora.shares": (0.5,)}
    )
    with listen("127.0.0.1", 0) as listener:
        spec = spec_of(given, listener)
        assert spec.given["url"] == f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert Settings.model_validate(json.loads(json.dumps(spec.given))["settings"]) == given
    assert spec.processes == 3
    assert 27 < spec.stop_seconds < 60


def test_a_port_is_reserved_for_those_who_share_it():
    with reserve("127.0.0.1", 0) as reserved:
        address = reserved.getsockname()
        with pytest.raises(OSError, match=rf"127.0.0.1:{address[1]} for gRPC .*another serving.grpc_port"):
            reserve(*address)
        with socket.socket() as one, socket.socket() as other:
            for sharing in (one, other):
                sharing.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sharing.bind(address)
                sharing.listen()
            # None is brought to the one that only holds the port.
            for _ in range(20):
                socket.create_connection(address, timeout=2).close()


def test_a_folder_is_for_this_user_alone_and_short_enough_for_sockets(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = make_folder(2)
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o077 == 0
    folder.rmdir()
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with pytest.raises(OSError, match=r"too long a name .*set TMPDIR"):
        make_folder(2)
    assert not list(long.iterdir())
