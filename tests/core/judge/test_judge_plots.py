from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from perdure.judge import plots
from perdure.judge.calibration import Bin

ODD = (
    "_hidden",
    "costs $5 or $6",
    "$x^{$ --> <!--",
    "<script>alert(1)</script> & co",
    "短信 😀",
    "line\nbreak\x07",
    "z" * 200,
)
LINE = [(0.0, 0.5), (1.0, 0.75), (2.0, 0.9)]
DRAW: dict[str, Callable[[tuple[str, ...]], str]] = {
    "lines": lambda names: plots.accuracy_over_time(
        dict.fromkeys(names, LINE), [(float(at), name) for at, name in enumerate(names)]
    ),
    "bars": lambda names: plots.bars_per_group(names, {name: [0.5] * len(names) for name in names}),
    "many bars": lambda names: plots.bars_per_group(names * 4, {"one": [0.5] * 4 * len(names)}),
    "heatmap": lambda names: plots.heatmap([[0.9] * len(names)] * len(names), names, names),
    "reliability": lambda names: plots.reliability(dict.fromkeys(names, (Bin(5, 0.4, 0.5), Bin(5, 0.9, 0.8)))),
}


@pytest.mark.parametrize("kind", DRAW)
def test_any_name_can_be_drawn(kind: str) -> None:
    svg = DRAW[kind](ODD)
    ElementTree.fromstring(svg)
    assert "<script>" not in svg
    assert "_hidden" in svg
    assert "costs $5 or $6" in svg
    assert "$x^{$ --&gt; &lt;!--" in svg
    assert "<!--" not in svg
    assert "短信 😀" in svg
    assert "line break·" in svg
    assert "z" * plots.LONGEST_LABEL not in svg


@pytest.mark.parametrize("kind", DRAW)
def test_nothing_to_draw(kind: str) -> None:
    ElementTree.fromstring(DRAW[kind](()))


@pytest.mark.parametrize("kind", DRAW)
def test_same_input_same_bytes(kind: str) -> None:
    assert DRAW[kind](("a", "b")) == DRAW[kind](("a", "b"))


@pytest.mark.parametrize("kind", DRAW)
def test_takes_the_colours_of_the_page(kind: str) -> None:
    svg = DRAW[kind](("a", "b"))
    assert svg.startswith("<svg ")
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert "#000000" not in svg
    assert "DejaVu" not in svg
    assert "http://www.w3.org/2000/svg" in svg
    assert "<image" not in svg


def test_ids_are_unique_in_a_page() -> None:
    one, other = DRAW["lines"](("a", "b")), DRAW["lines"](("a", "c"))
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert ids[0]
    assert not ids[0] & ids[1]
    for svg, known in zip((one, other), ids, strict=True):
        used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
        assert used
        assert used <= known


def test_missing_values_leave_gaps() -> None:
    full, gap = (plots.heatmap([[0.9, 0.8], [cell, 0.7]], ["1", "2"], ["1", "2"]) for cell in (0.6, None))
    assert "60.0" in full
    assert "60.0" not in gap
    assert "nan" not in gap.casefold()
    assert "70.0" in gap
    bars = plots.bars_per_group(["a", "b"], {"one": [0.5, None]})
    assert "nan" not in bars.casefold()


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="'one' has 1 values for 2 groups"):
        plots.bars_per_group(["a", "b"], {"one": [0.5]})
    with pytest.raises(ValueError, match="not 1 x 2"):
        plots.heatmap([[0.5]], ["a"], ["b", "c"])
