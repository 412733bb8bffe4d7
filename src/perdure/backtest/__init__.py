"""The loop over a recorded stream, as fast as it goes, and what it would have made of it."""

from perdure.backtest.evaluation import SessionResult
from perdure.backtest.report import write_backtest_report
from perdure.backtest.run import METRICS_FILE, Backtest, run_backtest

__all__ = ["METRICS_FILE", "Backtest", "SessionResult", "run_backtest", "write_backtest_report"]
