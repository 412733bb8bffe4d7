"""What every stream must do, whatever is behind it.

An implementation joins with a factory in `test_streams.py`, which says how to open it and how to put raw bytes into it.
"""

from __future__ import annotations

import json
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import pytest

from perdure.errors import RecordError
from perdure.records import MAX_TEXT_BYTES, Erasure, Feedback, Interaction, Record, new_id
from perdure.stream import Offset, Stream


def said(text: str, *, id: str | None = None, subject: str | None = None, time: float = 100.0) -> Interaction:
    return Interaction(id=id or new_id(), time=time, text=text, subject=subject)


def told(interaction: str, label: str = "refund", *, time: float = 200.0) -> Feedback:
    return Feedback(interaction=interaction, label=label, time=time)


def everything(stream: Stream, offset: Offset | None = None, limit: int = 1000) -> list[Record]:
    """All readable records from `offset` on, page by page."""
    records: list[Record] = []
    offset = offset or {}
    while True:
        page = stream.read(offset, limit)
        if not page.entries:
            return records
        records += [entry.record() for entry in page.entries if entry.reason() is None]
        offset = page.next


class StreamFactory(ABC):
    """Opens one and the same stream again and again."""

    durable = True
    """What was appended is still there when the stream is closed and opened again."""
    can_forget = True
    """`forget` removes entries; where it cannot, it returns 0."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abstractmethod
    def open(self) -> Stream: ...

    @abstractmethod
    def inject(self, stream: Stream, payload: bytes) -> None:
        """Appends bytes as another program might have written them."""


class StreamSuite:
    """Subclass it, and give `factory`."""

    @pytest.fixture
    def factory(self, tmp_path: Path) -> StreamFactory:
        raise NotImplementedError

    @pytest.fixture
    def stream(self, factory: StreamFactory) -> Iterator[Stream]:
        with factory.open() as stream:
            yield stream

    # ── reading ──
    def test_an_empty_stream_has_an_empty_page(self, stream: Stream) -> None:
        page = stream.read({}, 10)
        assert page.entries == ()
        assert dict(page.next) == dict(stream.end())
        assert stream.read(page.next, 10).entries == ()

    def test_records_come_back_as_they_were_and_in_order(self, stream: Stream) -> None:
        records: list[Record] = [
            Interaction(
                id="a",
                time=1.25,
                text="where is my money",
                label="refund",
                confidence=0.75,
                version="v000001-head",
                top=(("refund", 0.75), ("order", 0.25)),
                embedding="AAA=",
                subject="ann",
            ),
            told("a", "order"),
            Erasure(subject="bob", time=3.0),
        ]
        stream.append(records)
        assert everything(stream) == records

    def test_order_holds_across_appends_and_pages(self, stream: Stream) -> None:
        texts = [f"text {number}" for number in range(25)]
        for start in range(0, 25, 3):
            stream.append([said(text) for text in texts[start : start + 3]])
        for limit in (1, 4, 25, 100):
            assert [
                record.text for record in everything(stream, limit=limit) if isinstance(record, Interaction)
            ] == texts

    def test_a_page_is_never_longer_than_its_limit(self, stream: Stream) -> None:
        stream.append([said(f"text {number}") for number in range(10)])
        sizes = []
        page = stream.read({}, 4)
        while page.entries:
            sizes.append(len(page.entries))
            page = stream.read(page.next, 4)
        assert sizes == [4, 4, 2]

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_below_one_is_refused(self, stream: Stream, limit: int) -> None:
        with pytest.raises(ValueError, match=f"at least 1, got {limit}"):
            stream.read({}, limit)

    def test_reading_again_from_the_same_offset_gives_the_same(self, stream: Stream) -> None:
        stream.append([said(f"text {number}") for number in range(6)])
        second = stream.read(stream.read({}, 2).next, 2)
        again = stream.read(stream.read({}, 2).next, 2)
        assert second == again
        assert [entry.record().text for entry in second.entries] == ["text 2", "text 3"]  # type: ignore[union-attr]

    def test_an_offset_survives_json(self, stream: Stream) -> None:
        stream.append([said(f"text {number}") for number in range(4)])
        offset = json.loads(json.dumps(dict(stream.read({}, 3).next)))
        stream.append([said("text 4")])
        assert [r.text for r in everything(stream, offset)] == ["text 3", "text 4"]  # type: ignore[union-attr]

    def test_a_reader_that_is_up_to_date_gets_only_what_comes_later(self, stream: Stream) -> None:
        stream.append([said("before")])
        offset = stream.end()
        assert stream.read(offset, 10).entries == ()
        assert dict(stream.read({}, 10).next) == dict(offset)
        stream.append([said("after")])
        assert [record.text for record in everything(stream, offset)] == ["after"]  # type: ignore[union-attr]

    def test_entries_of_a_partition_stand_at_rising_positions(self, stream: Stream) -> None:
        stream.append([said(f"text {number}") for number in range(10)])
        seen: dict[str, int] = {}
        for entry in stream.read({}, 100).entries:
            assert entry.position > seen.get(entry.partition, -1)
            seen[entry.partition] = entry.position

    def test_two_readers_do_not_disturb_each_other(self, factory: StreamFactory, stream: Stream) -> None:
        stream.append([said(f"text {number}") for number in range(6)])
        slow = stream.read({}, 2)
        assert len(everything(stream)) == 6
        if factory.durable:
            with factory.open() as other:
                assert len(everything(other)) == 6
        assert [entry.record().text for entry in stream.read(slow.next, 2).entries] == ["text 2", "text 3"]  # type: ignore[union-attr]

    # ── appending ──
    def test_appending_nothing_changes_nothing(self, stream: Stream) -> None:
        before = stream.end()
        stream.append([])
        assert dict(stream.end()) == dict(before)

    def test_a_record_that_cannot_be_encoded_takes_the_whole_append_with_it(self, stream: Stream) -> None:
        broken = Interaction.model_construct(id="broken", time=1.0, text="half a pair: \ud83d")
        with pytest.raises(RecordError, match=r"interaction 'broken' cannot be encoded.*surrogates"):
            stream.append([said("good"), broken, said("good too")])
        assert everything(stream) == []
        stream.append([said("still works")])
        assert len(everything(stream)) == 1

    @pytest.mark.parametrize(
        "text",
        [
            "naïve café – “quotes”",
            "日本語 العربية עברית",
            "👩‍👩‍👧‍👦 𝔘𝔫𝔦𝔠𝔬𝔡𝔢",
            "e\u0301 is not \u00e9",
            "null \x00 and bell \x07",
            "lines\r\nand\u2028more\ttabs",
            "\ufeff bom \ufffe",
            "'; DROP TABLE entry; --",
        ],
    )
    def test_text_comes_back_letter_by_letter(self, stream: Stream, text: str) -> None:
        stream.append([said(text, id=f"id {text[:20]}", subject=text[:50])])
        (record,) = everything(stream)
        assert isinstance(record, Interaction)
        assert (record.text, record.subject) == (text, text[:50])

    @pytest.mark.parametrize("letter", ["x", "é", "\x01"])
    def test_the_longest_text_allowed_goes_through(self, stream: Stream, letter: str) -> None:
        text = letter * (MAX_TEXT_BYTES // len(letter.encode()))
        stream.append([said("before"), said(text), said("after")])
        assert [record.text for record in everything(stream)] == ["before", text, "after"]  # type: ignore[union-attr]

    def test_several_threads_append_at_once(self, stream: Stream) -> None:
        def append(name: str) -> None:
            for number in range(10):
                stream.append([said(f"{name} {number} {part}") for part in "ab"])

        threads = [threading.Thread(target=append, args=(name,)) for name in "pqrs"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        texts = [record.text for record in everything(stream, limit=7) if isinstance(record, Interaction)]
        assert len(texts) == len(set(texts)) == 80
        for name in "pqrs":
            own = [text for text in texts if text.startswith(name)]
            assert own == [f"{name} {number} {part}" for number in range(10) for part in "ab"]

    def test_a_reader_beside_a_writer_sees_each_record_once(self, stream: Stream) -> None:
        seen: list[str] = []
        done = threading.Event()

        def follow() -> None:
            offset: Offset = {}
            while True:
                last = done.is_set()
                page = stream.read(offset, 3)
                seen.extend(entry.record().text for entry in page.entries)  # type: ignore[union-attr]
                offset = page.next
                if last and not page.entries:
                    return

        reader = threading.Thread(target=follow)
        reader.start()
        for number in range(30):
            stream.append([said(f"text {number}")])
        done.set()
        reader.join(timeout=30)
        assert seen == [f"text {number}" for number in range(30)]

    # ── what others wrote ──
    @pytest.mark.parametrize(
        ("payload", "reason"),
        [
            (b"\xff\xfe\x00", "not UTF-8"),
            (b"", "not JSON"),
            (b"{ half", "not JSON"),
            (b"[1, 2]", "not a JSON object"),
            (b'{"kind": "gossip", "time": 1}', "kind"),
            (b'{"kind": "feedback", "interaction": "a", "label": "b", "time": 1, "schema": 99}', "newer"),
        ],
    )
    def test_an_unreadable_payload_comes_through_with_its_reason(
        self, factory: StreamFactory, stream: Stream, payload: bytes, reason: str
    ) -> None:
        stream.append([said("before")])
        factory.inject(stream, payload)
        stream.append([said("after")])
        before, broken, after = stream.read({}, 10).entries
        assert broken.payload == payload
        assert reason in (broken.reason() or "")
        with pytest.raises(RecordError, match=reason):
            broken.record()
        assert before.reason() is None
        assert after.record().text == "after"  # type: ignore[union-attr]

    def test_fields_of_a_later_version_are_kept_out_of_the_way(self, factory: StreamFactory, stream: Stream) -> None:
        factory.inject(stream, b'{"kind":"feedback","interaction":"a","label":"b","time":1,"mood":{"deep":[1]}}')
        (record,) = everything(stream)
        assert record == Feedback(interaction="a", label="b", time=1)

    # ── forgetting ──
    def test_forget_takes_the_subject_and_leaves_the_others_where_they_stood(
        self, factory: StreamFactory, stream: Stream
    ) -> None:
        self._needs_forgetting(factory)
        stream.append([said("one", id="1", subject="ann"), said("two", id="2", subject="bob"), said("three", id="3")])
        stream.append([told("2"), told("1"), told("3"), told("1", "other", time=900.0)])
        positions = {entry.payload: entry.position for entry in stream.read({}, 10).entries}
        assert stream.forget("ann", until=100.0) == 3
        left = stream.read({}, 10)
        assert [entry.record() for entry in left.entries][:2] == [
            said("two", id="2", subject="bob"),
            said("three", id="3"),
        ]
        assert [entry.record() for entry in left.entries][2:] == [told("2"), told("3")]
        assert all(positions[entry.payload] == entry.position for entry in left.entries)
        assert stream.forget("ann", until=100.0) == 0

    def test_forget_leaves_what_came_later(self, factory: StreamFactory, stream: Stream) -> None:
        self._needs_forgetting(factory)
        stream.append([said("old", id="1", subject="ann", time=10.0), said("new", id="2", subject="ann", time=11.0)])
        stream.append([told("1"), told("2")])
        assert stream.forget("ann", until=10.0) == 2
        assert everything(stream) == [said("new", id="2", subject="ann", time=11.0), told("2")]

    def test_forget_of_somebody_unknown_removes_nothing(self, stream: Stream) -> None:
        stream.append([said("one", id="1", subject="ann"), told("1")])
        assert stream.forget("an", until=1e12) == 0
        assert stream.forget("%", until=1e12) == 0
        assert len(everything(stream)) == 2

    def test_forget_leaves_feedback_on_unknown_interactions(self, factory: StreamFactory, stream: Stream) -> None:
        self._needs_forgetting(factory)
        stream.append([told("9"), said("anonymous", id="2"), said("one", id="1", subject="ann")])
        factory.inject(stream, b"not a record")
        stream.append([Erasure(subject="ann", time=500.0)])
        assert stream.forget("ann", until=1e12) == 1
        assert [entry.reason() is None for entry in stream.read({}, 10).entries] == [True, True, False, True]

    def test_a_position_is_never_used_twice(self, factory: StreamFactory, stream: Stream) -> None:
        self._needs_forgetting(factory)
        stream.append([said("one"), said("two", subject="ann")])
        last = stream.read({}, 10).entries[-1].position
        offset = stream.end()
        stream.forget("ann", until=1e12)
        assert dict(stream.end()) == dict(offset)
        stream.append([said("three")])
        (entry,) = stream.read(offset, 10).entries
        assert entry.position > last
        assert entry.record().text == "three"  # type: ignore[union-attr]

    def test_readers_go_past_what_was_forgotten(self, factory: StreamFactory, stream: Stream) -> None:
        self._needs_forgetting(factory)
        stream.append([said("one"), *(said(f"gone {number}", subject="ann") for number in range(5)), said("two")])
        offset = stream.read({}, 1).next
        stream.forget("ann", until=1e12)
        assert [record.text for record in everything(stream, offset, limit=1)] == ["two"]  # type: ignore[union-attr]
        stream.append([said("gone too", subject="ann")])
        stream.forget("ann", until=1e12)
        assert dict(stream.read({}, 10).next) == dict(stream.end())

    # ── closing ──
    def test_a_stream_that_is_opened_again_has_what_was_appended(self, factory: StreamFactory) -> None:
        if not factory.durable:
            pytest.skip("not durable")
        with factory.open() as first:
            first.append([said("one", subject="ann"), said("two")])
            offset = first.read({}, 1).next
        with factory.open() as second:
            assert [record.text for record in everything(second)] == ["one", "two"]  # type: ignore[union-attr]
            assert [record.text for record in everything(second, offset)] == ["two"]  # type: ignore[union-attr]
            second.append([said("three")])
            assert [record.text for record in everything(second, offset)] == ["two", "three"]  # type: ignore[union-attr]

    def test_closing_twice_is_fine(self, factory: StreamFactory) -> None:
        stream = factory.open()
        stream.close()
        stream.close()

    def _needs_forgetting(self, factory: StreamFactory) -> None:
        if not factory.can_forget:
            pytest.skip("entries expire by the store's own retention")
