"""A memory is killed at any write: what is found is the state before it or after it, and nothing is lost.

The life that is cut off, and where, is in `killed_writes.py`; run by hand with EACH = 1, it tries every place there is.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_writes.py")


@pytest.mark.parametrize(("part", "each", "steps"), [("statements", 19, 7), ("files", 15, 8)])
def test_killed_at_any_write_it_goes_on(tmp_path: Path, part: str, each: int, steps: int) -> None:
    run = subprocess.run(
        [sys.executable, str(SCRIPT), part, str(tmp_path), str(each)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    places = found["places"]
    assert all(place >= 0 for place in places), f"a state that no step leaves: {places}"
    assert places == sorted(places)
    assert len(set(places)) >= steps
