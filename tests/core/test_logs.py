from __future__ import annotations

import contextvars
import io
import json
import logging
from datetime import datetime

import pytest

from perdure import logs
from perdure.errors import StreamError
from perdure.logs import WITHHELD, JsonFormatter, TextFormatter

QUOTED = "my secret text"


@pytest.fixture
def logged():
    """Logs through a formatter and returns what came out; nothing reaches the other handlers."""

    def lines(formatter, log):
        out = io.StringIO()
        handler = logging.StreamHandler(out)
        handler.setFormatter(formatter)
        logger = logging.Logger("perdure.test", logging.DEBUG)
        logger.addHandler(handler)
        contextvars.copy_context().run(log, logger)
        return out.getvalue()

    return lines


def test_a_text_line_is_for_people(logged):
    line = logged(TextFormatter(), lambda log: log.warning("%d of %d", 1, 2))
    assert line.endswith(" WARNING perdure.test: 1 of 2\n")


def test_a_json_line_holds_what_was_bound_and_given(logged):
    def log(logger):
        logs.bind(request_id="abc")
        logger.info("a\n\ud800 “b”", extra={logs.FIELDS: {"status": 200}})

    out = logged(JsonFormatter(), log)
    assert out.isascii()
    assert out.count("\n") == 1
    line = json.loads(out)
    time = datetime.fromisoformat(line.pop("time"))
    assert time.utcoffset().total_seconds() == 0
    assert abs(datetime.now(time.tzinfo) - time).total_seconds() < 60
    assert line == {
        "level": "info",
        "logger": "perdure.test",
        "message": "a\n\ud800 “b”",
        "request_id": "abc",
        "status": 200,
    }


def test_what_is_bound_ends_with_its_context(logged):
    assert "(request abc)\n" in logged(TextFormatter(), lambda log: (logs.bind(request_id="abc"), log.info("x")))
    assert logs.bound() == {}
    assert logged(TextFormatter(), lambda log: log.info("x")).endswith(": x\n")


def test_binding_anew_leaves_nothing_behind(logged):
    def log(logger):
        logs.bind(request_id="abc", trace_id="1")
        logs.bind(request_id="def")
        logger.info("x")

    line = json.loads(logged(JsonFormatter(), log))
    assert line["request_id"] == "def"
    assert "trace_id" not in line


def fail(logger, error, *, within):
    if within:
        logs.bind(request_id="abc")
    try:
        try:
            raise KeyError(QUOTED)
        except KeyError as cause:
            raise error from cause
    except Exception:
        logger.exception("it failed")


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
@pytest.mark.parametrize(("error", "shown"), [(ValueError(QUOTED), False), (StreamError("the disk is full"), True)])
def test_within_a_request_what_others_say_is_withheld(logged, formatter, error, shown):
    out = logged(formatter(), lambda log: fail(log, error, within=True))
    assert QUOTED not in out
    assert f"KeyError: {WITHHELD}" in out
    assert ("the disk is full" in out) == shown
    assert type(error).__name__ in out
    assert "test_logs.py" in out, "where it happened is told"
    assert out.index("KeyError") < out.index(type(error).__name__), "what led to it comes first"


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_outside_of_requests_all_is_told(logged, formatter):
    out = logged(formatter(), lambda log: fail(log, ValueError("a shape"), within=False))
    assert "ValueError: a shape" in out
    assert QUOTED in out
    assert "which led to" in out


def test_what_another_handler_has_formatted_is_not_taken_over(logged):
    def log(logger):
        first = logging.StreamHandler(io.StringIO())
        logger.handlers.insert(0, first)
        fail(logger, ValueError(QUOTED), within=True)
        assert QUOTED in first.stream.getvalue()

    assert QUOTED not in logged(TextFormatter(), log)


@pytest.mark.parametrize("formatter", [TextFormatter, JsonFormatter])
def test_what_must_not_be_shown_is_taken_out_of_the_whole_line(logged, formatter):
    hide = formatter(lambda line: line.replace("hush", "…"))
    assert "hush" not in logged(hide, lambda log: fail(log, OSError("hush"), within=False))
    assert "hush" not in logged(hide, lambda log: log.info("hush %s", "hush"))


def test_what_was_left_out_on_purpose_is_not_told(logged):
    def quiet(log):
        try:
            try:
                raise KeyError(QUOTED)
            except KeyError:
                raise ValueError("a shape") from None
        except ValueError:
            log.exception("it failed")

    out = logged(TextFormatter(), quiet)
    assert "ValueError: a shape" in out
    assert "KeyError" not in out


def test_an_error_in_a_circle_ends(logged):
    def log(logger):
        one, other = ValueError("one"), ValueError("other")
        one.__cause__, other.__cause__ = other, one
        logger.error("x", exc_info=one)

    assert logged(TextFormatter(), log).count("ValueError: ") == 2


def test_only_what_was_begun_here_changes_its_format(monkeypatch):
    others = logging.StreamHandler(io.StringIO())
    root = logging.Logger("root")
    monkeypatch.setattr(logging, "getLogger", lambda: root)
    logs.begin(logging.INFO)
    (ours,) = root.handlers
    root.addHandler(others)
    assert (root.level, type(ours.formatter)) == (logging.INFO, TextFormatter)
    logs.use("json")
    assert type(ours.formatter) is JsonFormatter
    assert others.formatter is None
    logs.use("text")
    assert type(ours.formatter) is TextFormatter
    logs.begin(logging.DEBUG)
    assert (root.level, root.handlers) == (logging.INFO, [ours, others])
