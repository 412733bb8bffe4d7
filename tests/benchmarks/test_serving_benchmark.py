"""What the serving benchmark makes of its figures, and how it starts and stops what it measures."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import serving
from contestants.contest import Unavailable
from servers.accuracy import compared
from servers.base import Launch, Place, Server
from servers.contest import Ring, fastest, merged, quickest
from servers.entrants import SERVERS
from servers.environment import MARK, environment, requirements
from servers.figures import LoadFigures
from servers.goals import best, exports, goals, peers, ratios
from servers.models import Models
from servers.plan import FULL, QUICK
from servers.plot import draw
from servers.process import family, free_port, running
from servers.search import highest_rate
from servers.sentences import LONGEST, SHORTEST, Sentences, mixed
from servers.swaps import memory, swaps
from servers.transformer import fitted

# ── the search ──


@pytest.mark.parametrize("capacity", [3.0, 40.0, 99.0, 100.0, 104.0, 105.1, 900.0])
def test_the_search_finds_the_highest_rate(capacity: float) -> None:
    asked: list[float] = []

    def bears(rate: float) -> bool:
        asked.append(rate)
        return rate <= capacity

    found = highest_rate(bears, 100.0, step=0.05)
    assert found <= capacity < found * 1.05
    assert found in asked
    assert len(asked) <= 16
    assert len(set(asked)) == len(asked)


def test_a_server_that_bears_nothing() -> None:
    asked: list[float] = []
    assert highest_rate(lambda rate: bool(asked.append(rate)), 100.0, step=0.15) == 0
    assert min(asked) >= 1
    assert len(asked) < 8


def test_a_rate_that_was_luck_is_not_confirmed() -> None:
    asked: list[float] = []

    def bears(rate: float) -> bool:
        asked.append(rate)
        return rate <= 100 and not (rate > 90 and asked.count(rate) == 2)

    assert highest_rate(bears, 100.0, step=0.05) == 100
    asked.clear()
    found = highest_rate(bears, 100.0, step=0.05, confirmed=True)
    assert found == pytest.approx(100 / 1.05)
    assert asked.count(100.0) == 2


@pytest.mark.parametrize(("start", "step"), [(0.0, 0.1), (1.0, 0.0)])
def test_a_search_needs_somewhere_to_go(start: float, step: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        highest_rate(lambda rate: True, start, step=step)


# ── sentences ──


def test_mixed_lengths_spread_from_short_to_long() -> None:
    texts = [f"{word} " * (3 + number % 7) + "end" for number, word in enumerate(("aa", "b", "cccc", "dd"))]
    made = mixed(texts, len, 300, seed=1)
    lengths = [2 + sum(map(len, text.split())) for text in made]
    assert len(made) == 300
    assert min(lengths) >= SHORTEST - 4
    assert max(lengths) <= LONGEST
    assert max(lengths) > 0.95 * LONGEST
    assert min(lengths) < 30
    assert 180 < sum(lengths) / 300 < 230
    assert made == mixed(texts, len, 300, seed=1)
    assert made != mixed(texts, len, 300, seed=2)


def test_a_word_longer_than_its_text_is_taken_alone() -> None:
    assert all(len(text.split()) == 1 for text in mixed(["x" * 500], len, 3))


# ── figures ──


def figures(**how: Any) -> LoadFigures:
    given = {
        "seconds": 1.0,
        "requests": 100,
        "rps": 100.0,
        "p50_ms": 5.0,
        "p90_ms": 8.0,
        "p99_ms": 20.0,
        "max_ms": 30.0,
    }
    return LoadFigures(**{**given, **how})


@pytest.mark.parametrize(
    ("how", "borne"),
    [
        ({}, True),
        ({"p99_ms": 50.0}, True),
        ({"p99_ms": 50.1}, False),
        ({"statuses": {"503": 1}}, False),
        ({"broken": 1}, False),
        ({"unanswered": 1}, False),
        ({"gave_up": True}, False),
        ({"checked": 100, "right": 90}, True),
        ({"checked": 100, "right": 89}, False),
        ({"requests": 0}, False),
    ],
)
def test_a_rate_is_borne_only_with_every_answer(how: dict[str, Any], borne: bool) -> None:
    assert figures(**how).within(50) is borne


def test_rounds_become_medians_and_sums() -> None:
    rounds = [
        {"rps": rate, "broken": 1, "statuses": {"503": 2} if rate == 3 else {}, "gave_up": rate == 3, "open": [rate]}
        for rate in (1.0, 3.0, 100.0)
    ]
    assert merged([{"closed": {"1": one}, "name": "x"} for one in rounds]) == {
        "closed": {"1": {"rps": 3.0, "broken": 3, "statuses": {"503": 2}, "gave_up": True, "open": [1.0, 3.0, 100.0]}},
        "name": "x",
    }


def test_the_floor_is_the_best_of_all_ways() -> None:
    found = {
        "single": {"1_thread": {"p50_ms": 1.2}, "2_threads": {"p50_ms": 1.1}},
        "batched": {"8": {"a": 900.0, "b": 1000.0}, "32": {"a": 1300.0, "b": 1200.0}},
    }
    assert fastest(found) == 1300
    assert quickest(found) == 1.1


def test_accuracy_is_lost_in_points() -> None:
    found = compared(["a", "b", "b", "a"], ["a", "b", "a", "b"], ["a", "b", "a", "b"])
    assert found == {"rows": 4, "served": 0.5, "float32": 1.0, "loss_points": 50.0, "agreement": 0.5}
    assert compared(["a"], ["b"], ["a"])["loss_points"] == -100


# ── goals ──

CONTESTANTS: dict[str, dict[str, Any]] = {
    "bare_loop": {"rps_at_p99_50ms": 1300.0, "p50_1_connection_ms": 1.0},
    "fastapi_pipeline": {"rps_at_p99_50ms": 100.0, "p50_1_connection_ms": 8.0},
    "litserve": {"rps_at_p99_50ms": 280.0, "p50_1_connection_ms": 16.0},
    "bentoml": {"rps_at_p99_50ms": 200.0, "p50_1_connection_ms": 9.0},
    "mlserver": {"unavailable": "no such package"},
    "litserve_export": {"rps_at_p99_50ms": 500.0, "p50_1_connection_ms": 12.0},
    "perdure": {"rps_at_p99_50ms": 910.0, "p50_1_connection_ms": 1.5},
    "perdure_two_spaces": {"rps_at_p99_50ms": 650.0, "p50_1_connection_ms": 2.0},
}


def test_goals_compare_with_the_best_of_each_kind() -> None:
    assert peers(CONTESTANTS) == ["fastapi_pipeline", "litserve", "bentoml", "mlserver"]
    assert exports(CONTESTANTS) == ["litserve_export"]
    assert best(CONTESTANTS, peers(CONTESTANTS)) == "litserve"
    found = [
        goal.to_json()
        for goal in goals(CONTESTANTS, swap={"p99_ratio": 1.2}, memory={"growth": 1.2}, accuracy={"loss_points": 0.05})
    ]
    assert [(one["found"], one["met"], one["aim_met"]) for one in found] == [
        (9.1, True, True),
        (3.25, True, False),
        (1.82, True, False),
        (0.7, True, False),
        (1.5, True, False),
        (0.05, True, True),
        (1.2, True, False),
        (1.2, False, None),
        (1.4, True, None),
    ]
    assert [one["target"] for one in found[:2]] == [">= 6", ">= 3"]
    assert found[4]["target"] == "<= 2"
    assert set(found[0]) >= {"goal", "target", "found", "met"}


def test_what_was_not_measured_meets_nothing() -> None:
    found = goals({"perdure": CONTESTANTS["perdure"]}, swap={}, memory={}, accuracy={})
    assert all(goal.found is None and goal.to_json()["met"] is None for goal in found)
    none = ratios({"perdure": CONTESTANTS["perdure"], "litserve": {"rps_at_p99_50ms": 0.0}})
    assert none["rps_at_p99_50ms"] == {"litserve": None}
    assert none["best_peer"] is None


# ── contestants ──

EXPECTED = ("fastapi_pipeline", "litserve", "bentoml", "mlserver", "ray_serve", "litserve_export", "perdure")


@pytest.fixture
def place(tmp_path: Path) -> Place:
    folders = [tmp_path / name for name in ("transformer", "export", "registry", "two_spaces")]
    return Place(tmp_path, Path(sys.executable), 8000, 2, *folders)


@pytest.mark.parametrize("name", EXPECTED)
def test_every_contestant_can_be_launched_and_asked(name: str, place: Place) -> None:
    server = SERVERS[name]
    launch = server.launch(place)
    said = " ".join(launch.command) + " ".join(launch.environment.values())
    said += "".join(file.read_text(encoding="utf-8") for file in place.folder.glob("*.json"))
    assert "8000" in said
    served = {"transformer": place.transformer, "version": place.registry}[server.answers]
    assert str(place.export if name == "litserve_export" else served) in said
    assert "hé \\u0022" in json.dumps(json.loads(server.body('hé "')), ensure_ascii=False).replace('\\"', "\\u0022")
    assert server.settings


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("fastapi_pipeline", '{"label":"transfer","score":0.9}'),
        ("litserve", '{"label":"transfer","score":0.9}'),
        ("bentoml", '[{"label": "transfer", "score": 0.9}]'),
        ("mlserver", '{"outputs":[{"data":["{\\"label\\": \\"transfer\\", \\"score\\": 0.9}"]}]}'),
        ("perdure", '{"id":"1","label":"transfer","confidence":0.9}'),
    ],
)
def test_marks_tell_labels_apart(name: str, answer: str) -> None:
    mark = SERVERS[name].mark
    assert mark("transfer") in answer
    assert mark("transfe") not in answer
    assert mark("ransfer") not in answer


def test_environments_are_pinned_and_name_no_address() -> None:
    names = {server.requirements for server in SERVERS.values() if server.requirements}
    for name in names:
        lines = requirements(name).read_text(encoding="utf-8").splitlines()
        assert lines
        for line in lines:
            package, _, version = line.partition("==")
            assert package, line
            assert version, line
            assert "/" not in line
            assert not line.startswith("-")
    for program in (Path(serving.__file__).parent / "servers" / "apps").glob("*.py"):
        assert "://" not in program.read_text(encoding="utf-8")


# ── environments ──


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Commands that would have been run."""
    commands: list[list[str]] = []

    def run_child(command: list[str], environment: object = None) -> None:
        commands.append(command)
        if "venv" in command:
            (Path(command[-1]) / "lib" / "python3" / "site-packages").mkdir(parents=True)

    monkeypatch.setattr("servers.environment.run_child", run_child)
    return commands


def test_an_environment_is_made_once(said: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = environment("litserve", tmp_path)
    assert python == tmp_path / "litserve" / "bin" / "python"
    assert len(said) == 2
    assert said[1][-1] == str(requirements("litserve"))
    assert "--no-deps" in said[1]
    environment("litserve", tmp_path)
    assert len(said) == 2
    environment("litserve", tmp_path, fresh=True)
    assert len(said) == 4
    # Other packages make another environment.
    (tmp_path / "litserve" / MARK).write_text("of another list", encoding="utf-8")
    environment("litserve", tmp_path)
    assert len(said) == 6
    environment("litserve_export", tmp_path, seeing_ours=True)
    seen = (tmp_path / "litserve_export" / "lib" / "python3" / "site-packages" / "ours.pth").read_text(encoding="utf-8")
    assert "site-packages" in seen


def test_one_that_cannot_be_made_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(command: list[str], environment: object = None) -> None:
        if "venv" not in command:
            raise Unavailable("no such package")
        Path(command[-1]).mkdir(parents=True)

    monkeypatch.setattr("servers.environment.run_child", refuse)
    for _ in range(2):
        with pytest.raises(Unavailable, match="no such package"):
            environment("litserve", tmp_path)


# ── processes ──

SERVER = """
import http.server, json, os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("child", "w").write(str(child.pid))
serving, started = ["first"], time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.say(200, {"serving": serving[0]})
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path.startswith("/v1/versions/"):
            serving[0] = self.path.split("/")[3]
            open("promoted", "a").write(serving[0] + "\\n")
        late = time.monotonic() - started < float(os.environ.get("LATE", "0"))
        self.say(503 if late else 200, {"label": body.get("text"), "threads": os.environ["OMP_NUM_THREADS"]})
    def say(self, status, answer):
        data = json.dumps(answer, separators=(",", ":")).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()
"""


def stub(code: str = SERVER, **more: str) -> Server:
    def launch(place: Place) -> Launch:
        return Launch((sys.executable, "-c", code), {"PORT": str(place.port), **more})

    return Server("stub", launch, "/v1/predict", "version", {})


def ended(pid: int) -> bool:
    """Whether a process is gone, or only not yet buried."""
    end = time.monotonic() + 5
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def ring(tmp_path: Path) -> Ring:
    texts = ("one", "two")
    kinds = Sentences(texts, {"version": texts, "transformer": texts, "two_spaces": texts})
    plan = replace(
        QUICK, closed=(1, 2), warm_up_seconds=0.1, closed_seconds=0.2, open_seconds=0.2, least_requests=10, step=1.0,
        mixed_closed=(1,),
        swap_rounds=1, swap_seconds=0.5, swaps=20,
    )  # fmt: skip
    models = Models(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path, no_export="nothing was exported")
    return Ring(tmp_path, tmp_path, models, kinds, kinds, 3, plan)


def test_a_server_is_measured_and_stopped_with_its_children(ring: Ring) -> None:
    found = ring.measured(stub())
    child = int((ring.folder / "stub" / "child").read_text(encoding="utf-8"))
    assert ended(child)
    assert set(found["closed"]) == {"1", "2"}
    assert found["closed"]["1"]["rps"] > 10
    assert found["rps_at_p99_50ms"] > 0
    assert {step["rate"]: step["kept_up"] for step in found["open"]}[found["rps_at_p99_50ms"]]
    assert found["open"] == sorted(found["open"], key=lambda step: float(step["rate"]))
    assert found["memory_bytes"] > 2**20
    assert list(found["mixed_lengths"]["closed"]) == ["1"]


def test_servers_get_the_same_threads_and_not_our_paths(ring: Ring, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "nowhere")
    code = "import os; print(os.environ.get('PYTHONPATH'), os.environ['OMP_NUM_THREADS'], os.environ['X']); os._exit(3)"
    with pytest.raises(Unavailable, match="status 3: None 3 y"), ring.started(stub(code, X="y")):
        pass


def test_a_server_is_waited_for(tmp_path: Path) -> None:
    port = free_port()
    launch = Launch((sys.executable, "-c", SERVER), {"PORT": str(port), "LATE": "0.6"})
    with running(launch, port=port, folder=tmp_path, threads=1, path="/", body="{}") as one:
        assert one.start_seconds > 0.5
        assert len(family(one.process.pid)) == 2
        assert one.memory_bytes() > 2**20


def test_a_server_that_never_answers_is_given_up(tmp_path: Path) -> None:
    port = free_port()
    launch = Launch((sys.executable, "-c", "print('hello'); import time; time.sleep(60)"), {"PYTHONUNBUFFERED": "1"})
    with (
        pytest.raises(Unavailable, match=r"within 1 seconds \(.*refused.*\): hello"),
        running(launch, port=port, folder=tmp_path, threads=1, path="/", body="{}", limit=1.0),
    ):
        pass


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with (
        pytest.raises(Unavailable, match="cannot be started: No such file"),
        running(Launch(("./no-such",)), port=1, folder=tmp_path, threads=1, path="/", body="{}"),
    ):
        pass


def test_a_server_that_will_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servers.process.STOP_SECONDS", 0.2)
    port = free_port()
    stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVER
    launch = Launch((sys.executable, "-c", stubborn), {"PORT": str(port)})
    with running(launch, port=port, folder=tmp_path, threads=1, path="/", body="{}") as one:
        pass
    assert one.process.returncode == -signal.SIGKILL
    assert ended(int((tmp_path / "child").read_text(encoding="utf-8")))


# ── parts ──


@pytest.fixture
def swapping(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("servers.swaps.SERVERS", {"perdure": stub()})
    monkeypatch.setattr("servers.swaps.pair", lambda registry: ("second", "first"))
    monkeypatch.setattr("servers.swaps.EVERY_SECONDS", 0.1)


@pytest.mark.usefixtures("swapping")
def test_swaps_happen_under_the_load_and_end_where_they_began(ring: Ring) -> None:
    found = swaps(ring, 50.0)
    promoted = (ring.folder / "stub" / "promoted").read_text(encoding="utf-8").split()
    assert found["swaps"] >= 4
    assert promoted[:3] == ["second", "first", "second"]
    # And once more, back to where it was.
    assert len(promoted) == found["swaps"] + 1
    assert promoted[-1] == "first"
    assert found["rate"] == 50
    assert found["p99_ratio"] == pytest.approx(found["p99_ms_with"] / found["p99_ms_without"], abs=1e-3)
    assert found["failures_with"] == 0
    assert len(found["rounds"]["with"]) == len(found["rounds"]["without"]) == 1


@pytest.mark.usefixtures("swapping")
def test_memory_is_read_after_swaps_that_came_about(ring: Ring) -> None:
    found = memory(ring)
    promoted = (ring.folder / "stub" / "promoted").read_text(encoding="utf-8").split()
    assert promoted == ["first", "second"] * 10 + ["first"]
    assert [one["swaps"] for one in found["held"]] == [10, 20]
    assert found["growth"] == pytest.approx(found["held"][1]["bytes"] / found["held"][0]["bytes"], abs=1e-3)


# ── the command ──


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in (serving.STREAM, serving.VALIDATION):
        (tmp_path / name).write_text("", encoding="utf-8")
    return tmp_path


def test_only_the_whole_is_written_beside_the_readme(data: Path) -> None:
    def out(*arguments: str) -> Path:
        options = serving.parsed(["--data", str(data), "--work", str(data), *arguments])
        place: Path = options.out
        return place

    assert out() == serving.RESULT
    assert out("--quick") == out("--parts", "speed") == out("--contestants", "perdure") == data / "serving.json"
    assert out("--quick", "--out", "x.json") == Path("x.json")


@pytest.mark.parametrize(
    "arguments", [["--contestants", "nobody"], ["--parts", "none"], ["--threads", "0"], ["--data", "/nowhere"]]
)
def test_wrong_usage_is_said(data: Path, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        serving.parsed(["--data", str(data), *arguments])
    assert stopped.value.code == 2


def test_orders_of_rounds_differ_and_lose_nobody() -> None:
    names = list(serving.CONTESTANTS)
    turns = [serving.turn(names, number) for number in range(FULL.rounds)]
    assert turns[0] == names
    assert all(sorted(one) == sorted(names) for one in turns)
    assert len({one[0] for one in turns}) == FULL.rounds


def test_the_result_is_as_promised(
    data: Path, ring: Ring, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step = {"rate": 10.0, "kept_up": True, **vars_of(figures())}
    found = {
        "rps_at_p99_50ms": 10.0,
        "closed": {count: vars_of(figures()) for count in ("1", "8", "64", "256")},
        "open": [step],
        "mixed_lengths": {},
        "memory_bytes": 2**20,
    }

    def measured(ring: Ring, server: Server) -> dict[str, Any]:
        if server.name == "bentoml":
            raise Unavailable("it ended with status 1: no reason")
        return found

    monkeypatch.setattr(serving, "environment", lambda *_, **__: Path("python"))
    monkeypatch.setattr(serving, "prepared", lambda *_: (ring, ()))
    monkeypatch.setattr(Ring, "measured", measured)
    monkeypatch.setattr(
        Ring, "bare_loop", lambda ring: {"rps_at_p99_50ms": 20.0, "p50_1_connection_ms": 2.5, "mixed_lengths": {}}
    )
    monkeypatch.setattr(serving, "QUICK", replace(QUICK, rounds=2))
    out = data / "out" / "found.json"
    common = ["--data", str(data), "--work", str(data), "--quick", "--parts", "speed", "--out", str(out)]
    serving.main([*common, "--contestants", "bare_loop", "fastapi_pipeline", "litserve", "bentoml", "perdure"])
    told = json.loads(out.read_text(encoding="utf-8"))
    assert set(told) == {"contestants", "ratios", "goals", "setup"}
    ours = told["contestants"]["perdure"]
    assert ours["rps_at_p99_50ms"] == 10
    assert ours["p50_1_connection_ms"] == 5
    assert set(ours) >= {"closed", "open", "mixed_lengths", "settings"}
    assert len(ours["open"]) == 2
    assert told["contestants"]["bentoml"]["unavailable"] == "it ended with status 1: no reason"
    assert told["ratios"]["rps_at_p99_50ms"] == {
        "bare_loop": 0.5,
        "fastapi_pipeline": 1,
        "litserve": 1,
        "bentoml": None,
    }
    assert told["ratios"]["p50_1_connection_ms"]["bare_loop"] == 2
    assert len(told["goals"]) == 9
    assert told["setup"]["command"].startswith("python benchmarks/serving.py --quick --contestants bare_loop")
    assert out.with_suffix(".svg").read_text(encoding="utf-8").count("perdure") >= 1
    assert "no reason" in capsys.readouterr().out
    # LitServe alone is not enough.
    with pytest.raises(SystemExit, match="one more peer must run"):
        serving.main([*common, "--contestants", "litserve", "bentoml"])


def vars_of(one: LoadFigures) -> dict[str, Any]:
    return {name: getattr(one, name) for name in LoadFigures.__dataclass_fields__}


def test_the_picture_is_the_same_for_the_same_figures(tmp_path: Path) -> None:
    step = {"rate": 10.0, "p99_ms": 20.0, "requests": 5}
    found = {name: {**one, "open": [step]} for name, one in CONTESTANTS.items()}
    for name in ("a.svg", "b.svg"):
        draw(found, tmp_path / name)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert b"litserve_export" in first
    assert b"mlserver" not in first
    draw({}, tmp_path / "none.svg")


def test_quick_is_less_than_full() -> None:
    for name in ("rows_per_label", "rounds", "closed_seconds", "open_seconds", "mixed"):
        assert getattr(QUICK, name) < getattr(FULL, name)
    assert QUICK.closed == FULL.closed == (1, 8, 64, 256)
    assert QUICK.swaps == FULL.swaps == 100


# ── models ──


def test_answers_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[str, Sequence[str]]] = []

    def answers(models: Models, kind: str, texts: Sequence[str]) -> tuple[str, ...]:
        computed.append((kind, texts))
        return tuple(f"{kind} {text}" for text in texts)

    monkeypatch.setattr(Models, "_computed", answers)
    models = Models(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path)
    found = models.sentences(("a", "b"))
    assert found.labels["two_spaces"] == ("two_spaces a", "two_spaces b")
    assert set(found.labels) == {"transformer", "version", "two_spaces"}
    assert models.sentences(("a", "b")) == found
    assert len(computed) == 3
    assert models.answers("version", ("a", "c")) == ("version a", "version c")


def test_a_fitted_map_separates_what_can_be_separated() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(5, 16, generator=draw)
    classes = torch.arange(5).repeat(20)
    inputs = centres[classes] + 0.1 * torch.randn(100, 16, generator=draw)
    weights, offsets = fitted(inputs, classes, 5)
    assert weights.shape == (5, 16)
    assert ((inputs @ weights.T + offsets).argmax(dim=1) == classes).all()
    # One label that nothing but the offset tells from another.
    _, offsets = fitted(torch.zeros(30, 4), torch.tensor([0] * 20 + [1] * 10), 2)
    assert float(torch.softmax(offsets, dim=0)[0]) == pytest.approx(2 / 3, abs=0.01)
