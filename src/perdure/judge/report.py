"""One self-contained page: what a person reads first."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Tone = Literal["good", "bad", "open", "plain"]


@dataclass(frozen=True, slots=True)
class Mark:
    """The answer of a check, as a sign and a word: it does not rest on colour alone."""

    passed: bool | None
    """None: too little evidence to say."""


@dataclass(frozen=True, slots=True)
class Link:
    """Leads to another file of the same folder, or to the web.

    Raises:
        ValueError: the address would run a script.
    """

    text: str
    href: str

    def __post_init__(self) -> None:
        scheme = re.match(r"\s*([^/?#]*?)\s*:", self.href)
        if scheme and scheme.group(1).casefold() not in ("http", "https"):
            raise ValueError(f"a link cannot lead to {self.href!r}: give a relative path or an http address")


Cell = str | Mark | Link


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a header; texts are escaped where they are written."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A plot. The SVG is written as it is: it must come from `plots`."""

    svg: str
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a page, in this order: paragraphs, figures, tables."""

    title: str
    paragraphs: tuple[str | Link, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[Figure, ...] = ()


@dataclass(frozen=True, slots=True)
class ReportPage:
    """A page with its one sentence at the top."""

    title: str
    headline: str
    sections: tuple[Section, ...]
    tone: Tone = "plain"
    """Colour of the headline's edge: promoted, refused, undecided, or none of these."""


def write_report(folder: Path, page: ReportPage, name: str = "report.html") -> Path:
    """Writes `page` as one HTML file without scripts or outside resources; returns where it is.

    Raises:
        OSError: `folder` cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    # A reader never finds half a page: the whole one takes its place.
    draft = path.with_name(f".{name}.{os.getpid()}")
    try:
        draft.write_bytes(render(page).encode("utf-8", "replace"))
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def render(page: ReportPage) -> str:
    """The page as HTML."""
    template = _ENVIRONMENT.get_template("page.html.j2")
    return template.render(page=page, kind=_kind)


def _kind(cell: Cell) -> str:
    """How a cell is written."""
    if isinstance(cell, Mark):
        return {True: "pass", False: "fail", None: "unknown"}[cell.passed]
    if isinstance(cell, Link):
        return "link"
    if _NUMBER.fullmatch(cell.strip()):
        return "number"
    return "word" if len(cell) <= SHORT_WORD and not any(map(str.isspace, cell)) else "text"


SHORT_WORD = 24
"""A single word up to this length is not broken over lines."""


def _unbroken(text: str) -> str:
    """Keeps a number and its percent sign on one line."""
    return text.replace(" %", "\u00a0%")


_NUMBER = re.compile(r"[-+−]?[\d.,]+( ?(%|s|ms|min|h|points|[kMG]i?B|B))?|–")

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters["unbroken"] = _unbroken
