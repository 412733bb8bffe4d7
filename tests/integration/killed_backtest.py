"""A backtest that kills itself as its N-th stage begins.

python killed_backtest.py STREAM EVAL OUT SETTINGS.json N
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
from pathlib import Path

from perdure.backtest import run_backtest
from perdure.config import Settings


def main() -> None:
    stream, evaluation, out, settings = (Path(argument) for argument in sys.argv[1:5])
    left = itertools.count(int(sys.argv[5]), -1)

    def stage(_name: str) -> None:
        if next(left) == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    run_backtest(stream, evaluation, out, Settings.model_validate_json(settings.read_text("utf-8")), stage=stage)


if __name__ == "__main__":
    main()
