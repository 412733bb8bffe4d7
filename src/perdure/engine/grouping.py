"""Which texts go through the encoder together."""

from __future__ import annotations

from collections.abc import Sequence

PASS = 16
"""What one pass costs beside its tokens, in tokens; a little more or less of it changes few cuts."""


def groups(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Rows of each pass, so that padding and passes together cost least.

    Rows are sorted by length, and cut into runs; a run of n rows costs `PASS` + n · its longest. The best cuts follow
    from those of every shorter beginning, in O(n · most).

    Args:
        lengths: tokens of each of n rows.
        most: rows in one pass.
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    costs, starts = [0], [0]
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        cost, start = min(
            (costs[start] + PASS + (end - start) * longest, start) for start in range(max(0, end - most), end)
        )
        costs.append(cost)
        starts.append(start)
    found: list[list[int]] = []
    end = len(order)
    while end:
        found.append(order[starts[end] : end])
        end = starts[end]
    return found[::-1]
