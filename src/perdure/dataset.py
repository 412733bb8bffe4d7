"""Files of labelled rows: JSON Lines or CSV."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator

from perdure.errors import DataError, UsageError
from perdure.records import MAX_TEXT_BYTES, Interaction, Label, Subject

SURPLUS = "\0"
"""Key of what a CSV row has beyond the columns of the header; no column is called so."""


class DataRow(BaseModel):
    """One row of a data file."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    text: str
    label: Label
    session: Annotated[int, Field(ge=0)] = 0
    id: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    time: float | None = None
    subject: Subject | None = None
    labelled: bool = True
    """False: the loop must not see the label."""
    label_session: Annotated[int, Field(ge=0)] | None = None
    """The session in which the label arrives; None for the row's own."""

    @field_validator("label_session")
    @classmethod
    def _after_the_row(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and not info.data.get("labelled", True):
            raise ValueError("a row with labelled false has no label that could arrive; leave one of the two out")
        session = info.data.get("session", 0)
        if value is not None and value < session:
            raise ValueError(f"the label cannot arrive before its row, which comes in session {session}")
        return value


def read_rows(path: Path, labels: Collection[str] | None = None) -> tuple[DataRow, ...]:
    """The rows of a `.csv` file with a header, or of JSON Lines; in UTF-8, with or without a byte order mark.

    Args:
        path: the file.
        labels: those that rows may have; None allows any.

    Raises:
        UsageError: the file cannot be read or is empty.
        DataError: a row is broken, or has another label; with its line number.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read the data file {path}: {error.strerror or error}") from error
    data = data.removeprefix(codecs.BOM_UTF8)
    numbered = tuple(_csv(path, data) if path.suffix.lower() == ".csv" else _json_lines(path, data))
    if labels is not None:
        allowed = frozenset(labels)
        for number, row in numbered:
            if row.label not in allowed:
                raise DataError(
                    str(path), number, f"label {row.label!r} is not in the label file: add it there, or mend it"
                )
    rows = tuple(row for _, row in numbered)
    if not rows:
        raise UsageError(f"the data file {path} has no rows: give at least two labels with a few examples each")
    return rows


def event_id(source: str, row: int) -> str:
    """A stable id for row `row` of what `source` names: importing the same file twice records nothing twice."""
    return hashlib.blake2b(f"{source}\0{row}".encode(), digest_size=16).hexdigest()


def file_digest(path: Path) -> str:
    """Hash of a file's content.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        raise UsageError(f"cannot read the data file {path}: {error.strerror or error}") from error


def _json_lines(path: Path, data: bytes) -> Iterator[tuple[int, DataRow]]:
    for number, line in enumerate(data.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise DataError(
                str(path), number, f"not UTF-8: {error.reason} at byte {error.start}; save the file as UTF-8"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError(str(path), number, f"not JSON: {error}; write one object a line") from error
        yield number, _row(path, number, fields)


def _csv(path: Path, data: bytes) -> Iterator[tuple[int, DataRow]]:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise DataError(str(path), line, f"not UTF-8: {error.reason}; save the file as UTF-8") from error
    csv.field_size_limit(MAX_TEXT_BYTES)
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey=SURPLUS, strict=True)
    missing = {"text", "label"} - set(reader.fieldnames or ())
    if missing:
        found = ", ".join(map(repr, reader.fieldnames or ())) or "nothing"
        raise DataError(
            str(path),
            1,
            f"no column {' nor '.join(sorted(missing))} but {found}: the header must name text and label, with commas "
            "between the columns",
        )
    try:
        for fields in reader:
            surplus = fields.pop(SURPLUS, ())
            if any(surplus):
                raise DataError(
                    str(path),
                    reader.line_num,
                    f"{len(surplus)} more than the {len(reader.fieldnames or ())} columns that the header names, "
                    f"{surplus[0]!r} first: put a text with commas into double quotes",
                )
            yield (
                reader.line_num,
                _row(path, reader.line_num, {key: value for key, value in fields.items() if key and value}),
            )
    except csv.Error as error:
        # The reader has counted the lines before the one that it stumbled over.
        line = min(reader.line_num + 1, data.count(b"\n") + 1)
        raise DataError(str(path), line, f"not CSV: {error}") from error


def _row(path: Path, number: int, fields: Any) -> DataRow:
    if not isinstance(fields, dict):
        raise DataError(
            str(path), number, f'not an object but {type(fields).__name__}: write {{"text": …, "label": …}}'
        )
    try:
        row = DataRow.model_validate(fields)
        # The checks on texts stand with the record that will carry it.
        Interaction(time=0.0, id="check", text=row.text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        value = first["input"] if first["type"] != "missing" else "nothing"
        raise DataError(
            str(path), number, f"field {'.'.join(map(str, first['loc']))}: {first['msg']}, got {str(value)[:60]!r}"
        ) from error
    return row


def read_labels(path: Path) -> tuple[str, ...]:
    """The labels that a data file may use: a JSON list, a JSON object with labels as keys, or one label a line.

    Raises:
        UsageError: the file cannot be read, or names fewer than two labels.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read the label file {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the label file {path} is not UTF-8 ({error.reason}): save it as UTF-8") from error
    try:
        fields = json.loads(text)
    except ValueError:
        fields = [line for line in text.splitlines() if line.strip()]
    if not isinstance(fields, (list, dict)) or not all(isinstance(label, str) and label.strip() for label in fields):
        raise UsageError(f"the label file {path} must hold a JSON list of labels, an object, or one label a line")
    # As a row's label, each without blanks around it.
    labels = tuple(dict.fromkeys(label.strip() for label in fields))
    if len(labels) < 2:
        raise UsageError(
            f"the label file {path} has {len(labels)} label{'' if len(labels) == 1 else 's'}"
            f"{f', {labels[0]!r}' if labels else ''}: a classifier needs at least two"
        )
    return labels


def label_counts(rows: Sequence[DataRow]) -> dict[str, int]:
    """Rows of each label, most frequent first."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.label] = counts.get(row.label, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
