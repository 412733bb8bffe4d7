from __future__ import annotations

import io

import pytest
from rich.console import Console

from perdure_services.demo import view as view_module
from perdure_services.demo.progress import SeenTurn
from perdure_services.demo.scoreboard import WaveFigures
from perdure_services.demo.view import LiveView, PlainView, Said, Status, clock, dashboard, percent, verdicts_table

FIGURES = WaveFigures(2, ("refund_status",), 50, 0.5, 0.25, 0.7, 0.91, 0.4, "v7", ("v6", "v7"), ("v7 promote",))
STATUS = Status(
    activity="wave 2: new intents",
    wave=2,
    waves=6,
    answered=50,
    requests=192,
    sent=227,
    total=1209,
    live=0.62,
    first_live=0.31,
    confidence=0.77,
    exam=0.931,
    first_exam=0.622,
    version="v000003-head",
    trainer="learning for 12 s",
    failed=0,
    seconds=95.0,
    left=200.0,
    verdicts=(Said("v000003-lora", "keep", "Keep: no better than [the] champion."),),
    figures=(FIGURES,),
)


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=150, highlight=False)


def printed(console):
    return console.file.getvalue()


def test_the_dashboard_says_it_all(console):
    console.print(dashboard(STATUS))
    for part in (
        "wave 2 of 6", "50 / 192", "227 / 1,209", "62.0 %", "31.0 %", "93.1 %", "62.2 %", "77.0 %", "91.0 %",
        "v000003-head", "learning for 12 s", "1:35, about 3:20 left", "v000003-lora", "refund status",
        "Keep: no better than [the] champion.",
    ):  # fmt: skip
        assert part in printed(console), part


def test_the_dashboard_has_nothing_to_say_at_the_start(console):
    console.print(dashboard(Status("fitting version 1")))
    assert "fitting version 1" in printed(console)
    assert "–" not in printed(console)


def test_plain_lines_come_now_and_then(console, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(view_module.time, "monotonic", lambda: now[0])
    with PlainView(console) as view:
        view.show(STATUS)
        view.show(STATUS)
        assert printed(console).count("\n") == 1
        now[0] += 10.5
        view.show(STATUS)
        assert printed(console).count("\n") == 2
        view.show(Status("something else"))
        assert printed(console).count("\n") == 3
        view.say("[said] as it is")
    assert "[said] as it is" in printed(console)
    line = printed(console).split("\n")[0]
    assert line.startswith(
        "1:35  wave 2: new intents; 227 of 1209 requests; exam 93.1 % (version 1: 62.2 %); live answers 62.0 %"
    )
    assert "0 failed" in line


def test_the_live_view_leaves_the_terminal_clean():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with LiveView(console) as view:
        view.show(STATUS)
        view.say("not shown twice")
    assert "not shown twice" not in printed(console)
    assert printed(console).endswith("\x1b[?25h") or "\x1b[?25h" in printed(console)


def test_verdicts(console, turn_result):
    console.print(verdicts_table([SeenTurn(1, 4, turn_result(3, "v3", "keep"))]))
    assert "Keep: a reason." in printed(console)


def test_numbers():
    assert (percent(None), percent(0.5), percent(1.0)) == ("–", "50.0 %", "100.0 %")
    assert (clock(0), clock(61.9), clock(600)) == ("0:00", "1:01", "10:00")
