from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from perdure.config import StreamSettings
from perdure.errors import SettingError
from perdure.records import Erasure
from perdure.stream import MemoryStream, SqliteStream, open_stream
from perdure.stream.kafka import KafkaStream


def test_a_relative_path_is_relative_to_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with open_stream(StreamSettings(url="sqlite:deep/er/stream.db")) as stream:
        stream.append([Erasure(subject="ann", time=1.0)])
    assert (tmp_path / "deep" / "er" / "stream.db").is_file()


def test_an_absolute_path_is_taken_as_it_is(tmp_path: Path) -> None:
    with open_stream(StreamSettings(url=f"sqlite:{tmp_path}/stream.db")) as stream:
        assert isinstance(stream, SqliteStream)
        assert stream.path == tmp_path / "stream.db"


def test_the_scheme_may_be_written_large(tmp_path: Path) -> None:
    with open_stream(StreamSettings(url=f"SQLITE:{tmp_path}/stream.db")) as stream:
        assert isinstance(stream, SqliteStream)


def test_memory_gives_a_new_stream_each_time() -> None:
    with open_stream(StreamSettings(url="memory:")) as one, open_stream(StreamSettings(url="memory:")) as other:
        assert isinstance(one, MemoryStream)
        one.append([Erasure(subject="ann", time=1.0)])
        assert other.read({}, 1).entries == ()


def test_the_busy_timeout_is_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "stream.db"
    with (
        open_stream(StreamSettings(url=f"sqlite:{path}", busy_timeout=0.05)) as stream,
        closing(sqlite3.connect(path, isolation_level=None)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Exception, match=r"locked for more than 0\.05 s"):
            stream.append([Erasure(subject="ann", time=1.0)])


def test_a_topic_is_opened_without_asking_its_brokers() -> None:
    with open_stream(StreamSettings(url="kafka://one:9092,[::1]:9093")) as stream:
        assert isinstance(stream, KafkaStream)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("kafka://ann:hunter2@broker:9092", r"write kafka://HOST:PORT.*stream\.sasl_username"),
        ("kafka:broker:9092", r"write kafka://HOST:PORT"),
        ("kafka://broker", r"write kafka://HOST:PORT"),
        ("kafka://", r"write kafka://HOST:PORT"),
        ("redis:x", r"'redis:'.*no Redis stream.*known: sqlite:, kafka:, memory:"),
        ("var/stream.db", r"'var/stream.db'.*Write 'sqlite:var/stream.db'"),
        ("", "does not say what kind"),
        ("sqlite:", "write sqlite:PATH"),
        ("sqlite:///var/stream.db", "write sqlite:PATH"),
        ("sqlite::memory:", "write sqlite:PATH"),
        ("memory:name", "has no name"),
    ],
)
def test_other_urls_are_refused_with_what_is_known(url: str, says: str) -> None:
    with pytest.raises(SettingError, match=says) as caught:
        open_stream(StreamSettings(url=url))
    assert "hunter2" not in str(caught.value)
