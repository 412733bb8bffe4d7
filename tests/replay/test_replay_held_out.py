"""The held-out share may fall, but what was trained on once is no evidence any more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from perdure.errors import SettingError
from perdure_replay import ReplayMemory

Open = Callable[..., ReplayMemory]


def test_the_held_out_share_may_fall_but_not_rise(world: Any, opened: Open) -> None:
    rows = [record for number in range(40) for record in world.labelled(str(number), f"text {number}", "a")]
    with opened(rows, name="one", holdout_share=0.5) as memory:
        at_first = memory.counts().held_out
    with opened(name="one", holdout_share=0.2) as memory:
        assert 0 < memory.counts().held_out < at_first
    with pytest.raises(SettingError, match=r"holdout_share is 0\.5, but in the memory .* it was 0\.2"):
        opened(name="one", holdout_share=0.5)
    # A refusal leaves it as it was, and free to be opened.
    with opened(name="one", holdout_share=0.2) as memory:
        assert memory.counts().samples == 40


def test_reading_is_not_refused(world: Any, opened: Open) -> None:
    opened(world.labelled("1", "text", "a"), name="one", holdout_share=0.2).close()
    with opened(name="one", holdout_share=0.9, read_only=True) as memory:
        assert memory.counts().samples == 1
