"""Which texts go through the encoder together."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from perdure.engine.grouping import PASS, groups


def cost(lengths: list[int], rows: list[list[int]]) -> int:
    return sum(PASS + len(run) * max(lengths[row] for row in run) for run in rows)


@given(st.lists(st.integers(1, 200), min_size=1, max_size=9), st.integers(1, 9))
def test_no_other_cuts_of_the_sorted_rows_cost_less(lengths: list[int], most: int) -> None:
    found = groups(lengths, most)
    assert sorted(row for run in found for row in run) == list(range(len(lengths)))
    assert max(map(len, found)) <= most
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    best = min(
        cost(lengths, [order[start:end] for start, end in zip((0, *cuts), (*cuts, len(order)), strict=True)])
        for count in range(len(order))
        for cuts in combinations(range(1, len(order)), count)
        if max(end - start for start, end in zip((0, *cuts), (*cuts, len(order)), strict=True)) <= most
    )
    assert cost(lengths, found) == best


def test_one_long_text_does_not_pad_many_short_ones() -> None:
    assert groups([8, 400, 8, 8], 32) == [[0, 2, 3], [1]]
    assert sorted(map(len, groups([8] * 40, 32))) == [8, 32]
    assert groups([], 32) == []
