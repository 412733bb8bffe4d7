from __future__ import annotations

import codecs
import json

import pytest

from perdure.dataset import DataRow, event_id, file_digest, label_counts, read_labels, read_rows
from perdure.errors import DataError, UsageError
from perdure.records import MAX_TEXT_BYTES


@pytest.fixture
def file(tmp_path):
    def write(name: str, data: str | bytes):
        path = tmp_path / name
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
        return path

    return write


ROWS = (
    DataRow(text="where is it", label="parcel"),
    DataRow(text='she said "no", twice', label="refund", session=2, id="r1", time=5.5, subject="ann", labelled=False),
)


def test_json_lines_are_read(file):
    path = file(
        "rows.jsonl",
        '{"text": "where is it", "label": "parcel"}\n\n  \n'
        '{"text": "she said \\"no\\", twice", "label": "refund", "session": 2, "id": "r1", "time": 5.5,'
        ' "subject": "ann", "labelled": false, "colour": "red"}\r\n',
    )
    assert read_rows(path) == ROWS


def test_csv_is_read(file):
    path = file(
        "rows.CSV",
        "label,text,session,id,time,subject,labelled,colour\r\n"
        "parcel,where is it,,,,,,\r\n"
        'refund,"she said ""no"", twice",2,r1,5.5,ann,false,red\r\n',
    )
    assert read_rows(path) == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_byte_order_mark_does_not_matter(file, name):
    text = "text,label\nx,a\n" if name.endswith("csv") else '{"text": "x", "label": "a"}\n'
    assert read_rows(file(name, codecs.BOM_UTF8 + text.encode())) == (DataRow(text="x", label="a"),)


def test_a_label_may_arrive_with_its_row_or_later(file):
    path = file("rows.csv", "text,label,session,label_session\nx,a,2,2\ny,a,2,4\nz,a,2,\n")
    assert [row.label_session for row in read_rows(path)] == [2, 4, None]


GOOD = '{"text": "x", "label": "a"}'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "not JSON: .*; write one object a line"),
        ("[1]", "not an object but list"),
        ('{"text": "x"}', "field label: Field required, got 'nothing'"),
        ('{"text": "", "label": "a"}', "field text: .*text is empty, got ''"),
        ('{"text": "  ", "label": "a"}', "field text: .*text is empty"),
        ('{"text": 5, "label": "a"}', "field text: Input should be a valid string, got '5'"),
        ('{"text": "x", "label": ""}', "field label"),
        ('{"text": "x", "label": "a", "session": -1}', "field session: .*got '-1'"),
        ('{"text": "x", "label": "a", "session": 1.5}', "field session"),
        ('{"text": "x", "label": "a", "time": NaN}', "field time: Input should be a finite number, got 'nan'"),
        ('{"text": "x", "label": "a", "subject": ""}', "field subject"),
        ('{"text": "x", "label": "a", "id": ""}', "field id"),
        ('{"text": "x", "label": "a", "labelled": "perhaps"}', "field labelled"),
        (
            '{"text": "x", "label": "a", "session": 3, "label_session": 2}',
            "field label_session: .*cannot arrive before its row, which comes in session 3, got '2'",
        ),
        (
            '{"text": "x", "label": "a", "labelled": false, "label_session": 2}',
            "field label_session: .*leave one of the two out",
        ),
        ('{"text": "x", "label": "a", "label_session": -1}', "field label_session"),
        ("[" * 5000, "not JSON"),
    ],
)
def test_a_broken_line_is_named_by_its_number(file, line, told):
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 4: {told}") as raised:
        read_rows(file("rows.jsonl", f"{GOOD}\n\n{GOOD}\n{line}\n{GOOD}\n"))
    assert raised.value.line == 4
    assert raised.value.file.endswith("rows.jsonl")


def test_a_line_that_is_not_utf8_is_named(file):
    with pytest.raises(DataError, match=r"line 2: not UTF-8: .* at byte 10"):
        read_rows(file("rows.jsonl", GOOD.encode() + b'\n{"text": "\xff", "label": "a"}\n'))
    with pytest.raises(DataError, match=r"line 3: not UTF-8: .*; save the file as UTF-8"):
        read_rows(file("rows.csv", b"text,label\nx,a\n\xff,b\n"))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("text,lable\nx,a\n", "line 1: no column label but .text., .lable.: the header must name text and label"),
        ("words,kind\nx,a\n", "line 1: no column label nor text"),
        ("text,label\nx,a\n,b\n", "line 3: field text: Field required"),
        ('text,label\n"x\ny",a\nz\n', "line 4: field label: Field required"),
        ("text,label\nwhere is it, please,track\n", "line 2: 1 more than the 2 columns .*'track' first: put a text"),
        ('text,label\nx,a\n"y"z,b\nz,c\n', "line 3: not CSV"),
        ('text,label\nx,a\n"y,b\n', "line 3: not CSV"),
    ],
)
def test_a_broken_csv_is_told_with_its_line(file, text, told):
    with pytest.raises(DataError, match=told):
        read_rows(file("rows.csv", text))


def test_a_text_of_a_megabyte_is_read_and_a_longer_one_told(file):
    longest = "x" * MAX_TEXT_BYTES
    assert read_rows(file("rows.csv", f"text,label\n{longest},a\n"))[0].text == longest
    assert read_rows(file("a.jsonl", json.dumps({"text": longest, "label": "a"})))[0].text == longest
    with pytest.raises(DataError, match=r"line 1: .*1000001 bytes, more than the 1000000 allowed, got 'x{60}'$"):
        read_rows(file("b.jsonl", json.dumps({"text": longest + "x", "label": "a"})))
    with pytest.raises(DataError, match="line 2"):
        read_rows(file("b.csv", f"text,label\n{longest}xx,a\n"))


def test_a_comma_at_the_end_of_a_row_is_no_column(file):
    assert [row.label for row in read_rows(file("rows.csv", "text,label\nx,a,\ny,b\n"))] == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "text"), [("rows.csv", "text,label\nx, a \n"), ("r.jsonl", '{"text": "x", "label": " a "}')]
)
def test_a_label_has_no_blanks_around_it(file, name, text):
    assert read_rows(file(name, text))[0].label == "a"


@pytest.mark.parametrize("text", ['[" a ", "b"]', '{"a ": 1, "b": 2}', " a \n\nb\n"])
def test_a_label_file_has_them_without_blanks_too(file, text):
    labels = read_labels(file("labels.json", text))
    assert labels == ("a", "b")
    assert read_rows(file("rows.csv", "text,label\nx, a \n"), labels)[0].label == "a"


@pytest.mark.parametrize(("name", "text"), [("rows.jsonl", "\n \n"), ("rows.csv", "text,label\n"), ("empty.jsonl", "")])
def test_a_file_without_rows_is_told(file, name, text):
    with pytest.raises(UsageError, match="has no rows: give at least two labels"):
        read_rows(file(name, text))


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the data file .*absent.jsonl: No such file"):
        read_rows(tmp_path / "absent.jsonl")
    with pytest.raises(UsageError, match="Is a directory"):
        read_rows(tmp_path)
    with pytest.raises(UsageError, match="cannot read the data file"):
        file_digest(tmp_path / "absent.jsonl")


def test_labels_beside_the_label_file_are_told_with_their_line(file):
    path = file("rows.jsonl", f'{GOOD}\n\n\n{{"text": "y", "label": "zebra"}}\n')
    assert len(read_rows(path, ("a", "zebra"))) == 2
    with pytest.raises(DataError, match=r"line 4: label 'zebra' is not in the label file: add it there, or mend it"):
        read_rows(path, ("a", "b"))
    with pytest.raises(DataError, match="line 3: label 'b'"):
        read_rows(file("rows.csv", "text,label\nx,a\ny,b\n"), ("a", "c"))


@pytest.mark.parametrize(
    "text", ['["a", "b", "a"]', '{"a": "what it means", "b": ""}', "a\n\n b \na\n", '\ufeff["a", "b"]', "\ufeffa\nb"]
)
def test_label_files_come_in_three_shapes(file, text):
    assert read_labels(file("labels", text)) == ("a", "b")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('["a"]', "has 1 label, 'a': a classifier needs at least two"),
        ("only\nonly\n", "has 1 label, 'only'"),
        ("", "has 0 labels: a classifier"),
        ("[]", "has 0 labels"),
        ("5", "must hold a JSON list of labels, an object, or one label a line"),
        ('["a", 3]', "must hold a JSON list"),
        ('["a", ""]', "must hold a JSON list"),
    ],
)
def test_a_label_file_that_cannot_be_used_is_told(file, text, told):
    with pytest.raises(UsageError, match=told):
        read_labels(file("labels.json", text))


def test_a_label_file_that_cannot_be_read_is_told(file, tmp_path):
    with pytest.raises(UsageError, match=r"cannot read the label file .*absent"):
        read_labels(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"label file .*labels is not UTF-8 .*: save it as UTF-8"):
        read_labels(file("labels", b"\xff"))


def test_ids_of_events_are_stable_and_different():
    assert event_id("file", 3) == event_id("file", 3) == "282a350e7faf6c9e922f632809645c0a"
    assert len({event_id(source, row) for source in ("file", "fil") for row in range(100)}) == 200


def test_counts_are_most_frequent_first():
    rows = [DataRow(text="x", label=label) for label in "abbcc"]
    assert list(label_counts(rows).items()) == [("b", 2), ("c", 2), ("a", 1)]
