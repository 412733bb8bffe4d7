"""The code in the README of the replay package runs, and prints what stands there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "replay" / "README.md"
REPLAY = Path(__file__).parent


def test_the_code_says_what_stands_below_it(tmp_path: Path) -> None:
    (code, said) = re.findall(r"```(?:python|text)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 21
    first, again = (
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
        for _ in range(2)
    )
    assert first.returncode == again.returncode == 0, first.stderr + again.stderr
    assert first.stdout == said
    assert again.stdout.startswith("0 labels joined, 1 samples kept\n")


def test_it_names_tests_and_files_that_exist() -> None:
    text = README.read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+\.py)`", text))
    assert named
    assert [name for name in sorted(named) if not (REPLAY / name).is_file()] == []
