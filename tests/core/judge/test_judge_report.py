from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

from perdure.judge.report import Figure, Link, Mark, ReportPage, Section, Table, render, write_report

EVIL = "<script>alert('x')</script>&\"<img src=x onerror=alert(1)>"


class Tags(HTMLParser):
    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def names(self) -> set[str]:
        return {name for name, _ in self.seen}


def page(text: str = "text") -> ReportPage:
    table = Table(
        (text, "Answer", "Number"), ((text, Mark(None), "12.5 %"), (Link(text, "drift.html"), Mark(True), "–")), text
    )
    section = Section(text, (text, Link(text, "drift.html")), (table,), (Figure("<svg><g/></svg>", text),))
    return ReportPage(text, text, (section,), "good")


def test_everything_that_people_wrote_is_escaped(tmp_path: Path) -> None:
    text = write_report(tmp_path, page(EVIL)).read_text(encoding="utf-8")
    tags = Tags(text)
    assert "script" not in tags.names()
    assert "img" not in tags.names()
    assert text.count("&lt;script&gt;") == 11
    assert "<svg><g/></svg>" in text


def test_page_stands_alone(tmp_path: Path) -> None:
    path = write_report(tmp_path / "new", page())
    assert path == tmp_path / "new" / "report.html"
    assert [file.name for file in path.parent.iterdir()] == ["report.html"]
    tags = Tags(path.read_text(encoding="utf-8"))
    for name, attributes in tags.seen:
        assert name not in ("script", "link", "iframe", "img")
        assert "src" not in attributes
        assert not (attributes.get("href") or "").startswith("http")
    assert "prefers-color-scheme: dark" in path.read_text(encoding="utf-8")


def test_headline_comes_first_and_in_its_tone() -> None:
    text = render(ReportPage("Turn 3", "Keep: because.", (Section("Part", ("more",)),), "bad"))
    assert '<p class="headline bad">Keep: because.</p>' in text
    assert text.index("Keep: because.") < text.index("<h2>Part</h2>") < text.index("more")


def test_cells_are_told_apart() -> None:
    cells = (Mark(True), Mark(False), Mark(None), "-1.25 %", "1,204", "–", "12 labels", Link("there", "a/b.html"))
    text = render(ReportPage("t", "h", (Section("s", (), (Table(("",) * len(cells), (cells,)),)),)))
    for expected in (
        '<td class="pass">✓ pass</td>',
        '<td class="fail">✗ fail</td>',
        '<td class="unknown">? unknown</td>',
        '<td class="number">-1.25\u00a0%</td>',
        '<td class="number">1,204</td>',
        '<td class="number">–</td>',
        '<td class="text">12 labels</td>',
        '<td class="link"><a href="a/b.html">there</a></td>',
    ):
        assert expected in text


def test_empty_parts_leave_nothing() -> None:
    tags = Tags(render(ReportPage("t", "h", (Section("s", (), (Table(("a",), ()),)),))))
    assert "caption" not in tags.names()
    assert "figure" not in tags.names()


@pytest.mark.parametrize(
    "href", ["javascript:alert(1)", " JavaScript:alert(1)", "data:text/html,x", "java\nscript:x", "vbscript:x"]
)
def test_links_cannot_run_scripts(href: str) -> None:
    with pytest.raises(ValueError, match="a link cannot lead to"):
        Link("x", href)


@pytest.mark.parametrize(
    "href", ["drift.html", "../turns/7/report.html", "https://example.org/a:b", "report.html?at=10:30", "#a:b"]
)
def test_links_may_lead_to_pages(href: str) -> None:
    assert Link("x", href).href == href


def test_half_a_sign_is_written(tmp_path: Path) -> None:
    assert "broken ?" in write_report(tmp_path, page("broken \ud800")).read_text(encoding="utf-8")


def test_a_failed_write_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_report(tmp_path, page("old"))

    def full(draft: Path, content: bytes) -> int:
        draft.write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_report(tmp_path, page("new"))
    assert "old" in path.read_text(encoding="utf-8")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
