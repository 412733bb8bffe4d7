from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import continual
from contestants import avalanche, loop
from contestants.base import Order, Rows, Session, joined
from contestants.child import Task, run_child
from contestants.contest import Given, Outcome, Run, Unavailable, contend, finished, read_run, whole, write_run
from contestants.entrants import ENTRANTS
from contestants.figures import Answers, SessionFigures
from contestants.loop import carried_bytes
from contestants.plot import draw
from contestants.recipe import Recipe
from contestants.results import curves, results, spread
from perdure.records import Float
from perdure.registry import Card, EncoderCard, Registry

MakeContext = Callable[..., Any]


class Oracle:
    """Knows the rows that it was shown, and answers the first label otherwise."""

    def __init__(self, hoards: bool = False) -> None:
        self._known: dict[str, str] = {}
        self._hoards = hoards
        self.labels: tuple[str, ...] = ()

    def learn(self, session: Session) -> None:
        self.labels = tuple(dict.fromkeys([*self.labels, *session.rows.labels]))
        self._known |= dict(zip(session.rows.texts, session.rows.labels, strict=True))

    def probabilities(self, texts: Any) -> Float:
        columns = [self.labels.index(self._known.get(text, self.labels[0])) for text in texts]
        return np.eye(len(self.labels), dtype=np.float32)[columns]

    def kept(self) -> dict[str, int]:
        return {"a": 9} if self._hoards else {}

    def bytes_kept(self) -> int:
        return 5


def order() -> Order:
    first, second = Rows(("x", "y"), ("a", "b")), Rows(("z",), ("c",))
    return Order("10x15", 0, (Session(0, first), Session(1, second)), (Rows(("x", "?"), ("a", "b")), second))


def given(**changes: Any) -> Given:
    return Given(
        **{
            "contestant": "ncm",
            "order": "10x15",
            "seed": 0,
            "memory": 4,
            "evaluation": "val",
            "settings": {"a": 1},
            **changes,
        }
    )


def run_of(seed: int, acc: float, contestant: str = "ncm") -> Run:
    answers = (Answers(np.asarray([True, False]), np.asarray([0.5, 0.5], dtype=np.float32)),) * 2
    sessions = (SessionFigures(0, 1.0, (1.0,), 1.0, 1.0), SessionFigures(1, acc, (acc, acc), 1.0, 1.0))
    return finished(given(seed=seed, contestant=contestant), Outcome(sessions, answers, 3, 2))


def test_a_contestant_is_asked_of_all_that_it_has_seen_after_each_session(context: MakeContext) -> None:
    outcome = contend(Oracle(), order(), context().features, memory=4)
    assert [one.accuracies for one in outcome.sessions] == [(0.5,), (0.5, 1.0)]
    assert [one.acc_seen for one in outcome.sessions] == [0.5, pytest.approx(2 / 3)]
    assert outcome.bytes_kept == 5
    assert finished(given(), outcome).right == "101"


def test_a_contestant_that_keeps_more_than_its_budget_is_stopped(context: MakeContext) -> None:
    with pytest.raises(AssertionError, match="9 samples of a class are kept, more than 4"):
        contend(Oracle(hoards=True), order(), context().features, memory=4)
    contend(Oracle(hoards=True), order(), context().features, memory=None)


def test_embeddings_are_charged_to_who_learns_from_them(context: MakeContext, two_sessions: Order) -> None:
    one = context()
    one.features._seconds[:] = 10.0
    make = ENTRANTS["ncm"].make
    assert make is not None
    outcome = contend(make(one), two_sessions, one.features, memory=4)
    rows = [len(session.rows) for session in two_sessions.sessions]
    assert [round(session.cpu_seconds, -1) for session in outcome.sessions] == [10 * count for count in rows]


def test_embeddings_are_made_once(context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    first = context().features
    monkeypatch.setattr(type(first), "_embed", lambda *_: pytest.fail("made again"))
    again = context().features
    texts = list(first._rows)
    np.testing.assert_array_equal(first.of(texts), again.of(texts))
    assert again._seconds.sum() == pytest.approx(first._seconds.sum())


def test_the_whole_order_at_once_is_evaluated_on_every_session(context: MakeContext) -> None:
    at_once = whole(order())
    assert at_once.sessions == (Session(1, joined([one.rows for one in order().sessions])),)
    outcome = contend(Oracle(), at_once, context().features, memory=4)
    assert [one.accuracies for one in outcome.sessions] == [(0.5, 1.0)]
    assert outcome.figures().bwt is None


def test_a_run_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    run = run_of(0, 0.5)
    write_run(run, tmp_path)
    assert read_run(run.given, tmp_path) == run


def test_a_run_with_other_settings_or_without_figures_does_not_count_as_done(tmp_path: Path) -> None:
    write_run(run_of(0, 0.5), tmp_path)
    assert read_run(given(settings={"a": 2}), tmp_path) is None
    write_run(Run(given(seed=7), None, missing="not installed"), tmp_path)
    assert read_run(given(seed=7), tmp_path) is None


def test_results_have_means_and_deviations_over_seeds_and_each_run() -> None:
    runs = [run_of(0, 0.5), run_of(1, 0.7), Run(given(contestant="perdure"), None, missing="why not")]
    found = results(
        runs,
        setup={"cores": 2},
        about={"ncm": "means"},
        memory=4,
        ceilings=(),
        taken=lambda run: {"commit": str(run.given.seed)},
    )
    (row,) = found["table"]
    assert (row["contestant"], row["order"], row["memory"], row["seeds"]) == ("ncm", "10x15", 4, [0, 1])
    assert row["acc"]["mean"] == pytest.approx(0.6)
    assert row["acc"]["std"] == pytest.approx(0.2 / np.sqrt(2))
    assert [one["figures"]["acc"] for one in found["runs"]] == [0.5, 0.7]
    assert [one["taken"] for one in found["runs"]] == [{"commit": "0"}, {"commit": "1"}]
    assert found["missing"][0]["reason"] == "why not"
    assert curves(runs, "10x15", 4) == {"ncm": [(1.0, 1.0), (2.0, pytest.approx(0.6))]}
    json.dumps(found)


def test_what_nobody_tells_has_no_mean() -> None:
    assert spread([None, None]) == {"mean": None, "std": None}
    assert spread([None, 2.0]) == {"mean": 2.0, "std": None}


def test_the_plot_names_every_contestant_and_is_the_same_each_time(tmp_path: Path) -> None:
    panels = {"10x15": {"ncm": [(1.0, 1.0), (2.0, 0.5)], "perdure": [(1.0, 0.9), (2.0, 0.8)]}}
    for name in ("first", "second"):
        draw(panels, tmp_path / f"{name}.svg", title="accuracy")
    drawn = (tmp_path / "first.svg").read_text(encoding="utf-8")
    assert "perdure  80.0" in drawn
    assert "ncm  50.0" in drawn
    assert drawn.index("perdure  80.0") < drawn.index("ncm  50.0")
    assert drawn == (tmp_path / "second.svg").read_text(encoding="utf-8")


# ── the command ──
@pytest.fixture
def command(data: Path, tiny_encoder: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(*more: str) -> dict[str, Any]:
        arguments = [
            "--data",
            str(data),
            "--model",
            str(tiny_encoder),
            "--out",
            str(tmp_path / "out"),
            "--threads",
            "1",
        ]
        arguments += ["--orders", "10x15", "--eval", "val", "--recipe", "random_features=64"]
        continual.main([*arguments, *more])
        found: dict[str, Any] = json.loads((tmp_path / "out" / "continual.json").read_text(encoding="utf-8"))
        return found

    return run


def test_the_command_runs_what_is_asked_and_only_what_is_not_done(
    command: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    first = command("--contestants", "ncm", "ridge", "--seeds", "0", "1", "--memory", "3")
    assert [(one["contestant"], one["seed"]) for one in first["runs"]] == [
        ("ncm", 0),
        ("ridge", 0),
        ("ncm", 1),
        ("ridge", 1),
    ]
    assert first["setup"]["recipe"]["random_features"] == 64
    assert "--seeds 0 1 --contestants ncm ridge --memory 3 --eval val" in first["setup"]["command"]
    assert (tmp_path / "out" / "continual.svg").exists()
    assert "ncm" in capsys.readouterr().out
    taken: list[str] = []
    take = continual.take

    def noted(given: Given, *rest: Any) -> Run:
        taken.append(given.name)
        return take(given, *rest)

    monkeypatch.setattr(continual, "take", noted)
    (tmp_path / "out" / "ncm-10x15-1-m3-val.json").unlink()
    (tmp_path / "out" / "continual.json").unlink()
    again = command("--contestants", "ncm", "ridge", "--seeds", "0", "1", "--memory", "3")
    assert taken == ["ncm-10x15-1-m3-val"]
    strip = [{**one["figures"], "cpu_seconds": 0, "cpu_seconds_per_session": 0} for one in again["runs"]]
    assert strip == [{**one["figures"], "cpu_seconds": 0, "cpu_seconds_per_session": 0} for one in first["runs"]]
    taken.clear()
    command("--contestants", "ncm", "ridge", "--seeds", "0", "--memory", "3", "--recipe", "ridge=0.5")
    assert taken == ["ridge-10x15-0-m3-val"]


def test_a_result_is_made_in_parts_and_goes_on_in_any_clone(
    command: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = command("--contestants", "ncm", "--seeds", "0", "--memory", "3")
    for path in (tmp_path / "out").glob("ncm-*.json"):
        path.unlink()
    taken: list[str] = []
    take = continual.take
    monkeypatch.setattr(continual, "take", lambda given, *rest: taken.append(given.name) or take(given, *rest))
    second = command("--contestants", "ncm", "knn", "--seeds", "0", "--memory", "3")
    assert taken == ["knn-10x15-0-m3-val"]
    assert second["runs"][0] == first["runs"][0]
    assert command("--table")["runs"] == second["runs"]
    taken.clear()
    command("--contestants", "ncm", "knn", "--seeds", "0", "--memory", "3", "--again", "ncm")
    assert taken == ["ncm-10x15-0-m3-val"]
    assert command("--contestants", "ncm", "--seeds", "0", "--memory", "10")["headline_memory"] == 10
    assert command("--contestants", "ncm", "--seeds", "0", "--memory", "2")["headline_memory"] == 10


def test_a_run_keeps_the_commit_that_made_it(
    command: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was interrupted before the result was written, and went on at another commit."""
    monkeypatch.setattr(continual, "commit", lambda: "one")
    command("--contestants", "ncm", "--seeds", "0", "--memory", "3")
    (tmp_path / "out" / "continual.json").unlink()
    monkeypatch.setattr(continual, "commit", lambda: "two")
    found = command("--contestants", "ncm", "knn", "--seeds", "0", "--memory", "3")
    assert [run["taken"]["commit"] for run in found["runs"]] == ["one", "two"]


def test_the_judge_is_part_of_the_code(tmp_path: Path) -> None:
    """Its comparison has the name of a module of the contest that only shows figures."""

    def digest(name: str, text: str) -> str:
        (tmp_path / "comparison.py").write_text(text, encoding="utf-8")
        package = ModuleType(name)
        package.__file__ = str(tmp_path / "__init__.py")
        return continual.code_digest(package)

    assert digest("perdure", "a") != digest("perdure", "b")


def test_a_contestant_that_cannot_be_had_is_named_with_the_reason(
    command: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise Unavailable("no such thing here")

    monkeypatch.setattr(loop, "run_child", refuse)
    found = command("--contestants", "ncm", "perdure", "--seeds", "0")
    assert [(one["contestant"], one["reason"]) for one in found["missing"]] == [("perdure", "no such thing here")]
    assert [one["contestant"] for one in found["runs"]] == ["ncm"]


def test_ceilings_may_be_trained_only_at_the_end(command: Callable[..., dict[str, Any]]) -> None:
    found = command("--contestants", "joint_lora", "--seeds", "0", "--joint", "last", "--recipe", "epochs=1")
    (one,) = found["runs"]
    assert len(one["sessions"]) == 1
    assert one["figures"]["bwt"] is None
    assert one["figures"]["samples_kept"] == 64


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--recipe", "ridg=1"], "--recipe has no 'ridg'"),
        (["--recipe", "ridge=much"], "needs a number"),
        (["--memory", "0"], "at least 1 sample"),
        (["--quick", "--contestants", "perdure"], "--quick has only ncm"),
        (["--data", "nowhere"], "no stream_10x15.jsonl in nowhere"),
    ],
)
def test_what_cannot_be_used_is_refused_with_what_to_do(
    command: Callable[..., dict[str, Any]], capsys: Any, arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        command(*arguments)
    assert said in capsys.readouterr().err


def test_quick_takes_one_order_and_seed_and_says_what_it_leaves_out(data: Path, tmp_path: Path) -> None:
    options = continual.parsed(["--data", str(data), "--quick", "--out", str(tmp_path)])
    assert (options.orders, options.seeds) == (["10x15"], [0])
    assert set(options.contestants) == set(continual.QUICK)
    assert options.results == options.out == tmp_path / "quick"
    assert "reduced" in continual.settings("er", options, {})
    assert "reduced" not in continual.settings("ncm", options, {})
    assert continual.parsed(["--data", str(data), "--eval", "val"]).results != continual.RESULTS
    assert continual.parsed(["--data", str(data)]).results == continual.RESULTS


# ── children ──
def task(folder: Path) -> Task:
    return Task(order(), 10, 3, "tiny", 1, Recipe(), folder, folder)


def test_perdure_is_run_as_a_backtest_of_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def backtest(command: list[str]) -> None:
        commands.append(command)
        seconds = {"cpu_seconds": 9.0, "wall_seconds": 9.0}
        sessions = [
            {"session": 0, "acc_seen": 1.0, "accuracies": [1.0], "learn_cpu_seconds": 2.0, **seconds},
            {"session": 1, "acc_seen": 2 / 3, "accuracies": [0.5, 1.0], "learn_cpu_seconds": 4.0, **seconds},
        ]
        for one in sessions:
            one["turn"] = {"wall_seconds": 1.5}
        metrics = {"sessions": sessions, "memory_bytes": 11, "memory_samples": 20}
        said = [(0, 0, "a", 0.8), (0, 1, "b", 0.6), (1, 0, "c", 0.8), (1, 1, "b", 0.7), (1, 2, "c", 0.9)]
        names = ("session", "row", "answer", "confidence")
        lines = [json.dumps(dict(zip(names, one, strict=True))) + "\n" for one in said]
        (tmp_path / "backtest").mkdir()
        (tmp_path / "backtest" / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
        (tmp_path / "backtest" / "predictions.jsonl").write_text("".join(lines), encoding="utf-8")

    monkeypatch.setattr(loop, "run_child", backtest)
    outcome = loop.perdure(task(tmp_path))
    figures = outcome.figures()
    assert (figures.acc, figures.bwt, figures.lowest, figures.cpu_seconds) == (2 / 3, -0.5, 0.5, 6.0)
    assert (figures.bytes_kept, figures.samples_kept) == (11, 20)
    assert [one.wall_seconds for one in outcome.sessions] == [1.5, 1.5]
    assert [one.right.tolist() for one in outcome.answers] == [[True, True], [False, True, True]]
    assert figures.negative_flips == pytest.approx(1 / 2)
    # Each confidence in a bin of its own.
    assert figures.ece == pytest.approx((0.8 + 0.3 + 0.1) / 3)
    assert figures.aurc == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)
    said = " ".join(commands[0])
    assert "--memory-per-class 10 --seed 3" in said
    assert f"--stream {tmp_path / 'stream.jsonl'} --eval {tmp_path / 'eval.jsonl'}" in said


def test_a_child_that_fails_is_unavailable_with_what_it_said_last() -> None:
    with pytest.raises(Unavailable, match="status 3: the reason"):
        run_child(["sh", "-c", "echo the reason >&2; exit 3"])
    with pytest.raises(Unavailable, match="cannot be started"):
        run_child(["/nowhere/at-all"])


def test_avalanche_runs_in_an_environment_of_its_own_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []
    written = {
        "sessions": [{"session": 0, "acc_seen": 0.5, "accuracies": [0.5], "cpu_seconds": 1.0, "wall_seconds": 1.0}],
        "answers": [{"right": [True, False], "confidence": [0.5, 0.25]}],
        "bytes_kept": 4,
        "samples_kept": 2,
    }

    def run(command: list[str], _environment: Any = None) -> None:
        commands.append(command)
        (tmp_path / "avalanche").mkdir(exist_ok=True)
        (tmp_path / "outcome.json").write_text(json.dumps(written), encoding="utf-8")

    monkeypatch.setattr(avalanche, "run_child", run)
    (tmp_path / "uv").touch()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    outcome = avalanche.avalanche_ewc(task(tmp_path))
    assert outcome.answers[0].right.tolist() == [True, False]
    assert outcome.sessions[0].accuracies == (0.5,)
    assert [command[1] for command in commands] == ["-m", "pip", "pip", "-m"]
    assert json.loads((tmp_path / "task.json").read_text(encoding="utf-8"))["plugin"] == "ewc"
    commands.clear()
    avalanche.avalanche_replay(task(tmp_path))
    assert len(commands) == 1


def test_avalanche_is_unavailable_where_nothing_can_bring_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(Unavailable, match="Avalanche is not installed"):
        avalanche.avalanche_replay(task(tmp_path))


def test_what_the_next_update_needs_is_counted_once() -> None:
    registry = Registry("memory://")
    for number in (1, 2):
        card = Card(name=f"v{number}", kind="lora", encoder=EncoderCard(name="m", fingerprint="f"), labels=("a", "b"))
        files = {"ewc.safetensors": b"e" * 100 * number, "adapter.safetensors": b"a" * 10, "report.html": b"r" * 999}
        registry.write(card, files)
    head = Card(name="v3", kind="head", encoder=EncoderCard(name="m", fingerprint="f"), labels=("a", "b"))
    registry.write(head, {"leverage.safetensors": b"l" * 7, "head.safetensors": b"h" * 50})
    assert carried_bytes(registry) == 200 + 10 + 7
