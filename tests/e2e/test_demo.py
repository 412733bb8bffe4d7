"""The real demo on a little data: killed, interrupted, and finished by a third start."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from perdure_services.demo.scenario import find_data

pytestmark = [pytest.mark.e2e, pytest.mark.model, pytest.mark.timeout(600)]

OPENING = 12
"""Rows of each intent that version 1 is fitted from."""

SETTINGS = {
    "model.features": 512,
    "memory.per_class": 30,
    "lora.enabled": "false",
    "judge.judge_latency": "false",
    # Little data makes wide bounds; whether the judge is right is not the question here.
    "judge.margin_new_labels": 0.4,
    "judge.group_margin": 0.9,
    "judge.negative_flips": 0.5,
    "judge.calibration": 0.9,
    "judge.new_label_recall": 0.2,
    "judge.prediction_shift": 0.9,
    "trainer.min_new_labels": 40,
    "trainer.poll_seconds": 0.5,
}


@dataclass
class Run:
    """One start of the demo."""

    code: int
    seconds: float
    said: str
    left_behind: list[int]
    answers: list[dict] = field(default_factory=list)


@dataclass
class Story:
    """All starts, in one folder."""

    out: Path
    runs: list[Run] = field(default_factory=list)


def small_data(folder: Path) -> Path:
    """The first intents and the first wave of the example, thinned."""
    source = find_data(None)
    folder.mkdir()
    kept: dict[tuple[int, str], int] = {}
    with (folder / "stream.jsonl").open("w") as stream:
        for line in (source / "stream.jsonl").read_text().splitlines():
            row = json.loads(line)
            place = row["session"], row["label"]
            kept[place] = kept.get(place, 0) + 1
            if row["session"] <= 1 and kept[place] <= OPENING:
                stream.write(line + "\n")
    rows = [line for line in (source / "eval.jsonl").read_text().splitlines() if json.loads(line)["session"] <= 1]
    (folder / "eval.jsonl").write_text("\n".join(rows[::4]) + "\n")
    return folder


def with_mark(mark: str) -> list[int]:
    """Processes that inherited `mark`; zombies have no environment any more."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def journal(out: Path, kind: str) -> list[dict]:
    path = out / "progress.jsonl"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    data, out = small_data(folder / "data"), folder / "out"
    made = Story(out)
    mark = f"MARK={uuid.uuid4()}"
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")}
    # Each of a dozen processes would compile everything anew.
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    environ["MARK"] = mark.partition("=")[2]
    options = [part for name, value in SETTINGS.items() for part in ("--set", f"{name}={value}")]

    def run(*arguments: str, end=None, when=None) -> Run:
        begun = time.monotonic()
        command = [sys.executable, "-c", "from perdure.cli import main; main()", "demo", "--out", str(out)]
        command += ["--data", str(data), "--waves", "1", "--plain", "--rate", "14", *options, *arguments]
        with (folder / "said").open("w+") as said:
            process = subprocess.Popen(command, env=environ, cwd=folder, stdout=said, stderr=subprocess.STDOUT)
            try:
                while when is not None and process.poll() is None and not when():
                    assert time.monotonic() - begun < 120, (folder / "said").read_text()
                    time.sleep(0.05)
                if end is not None:
                    process.send_signal(end)
                    begun = time.monotonic()
                code = process.wait(200)
            finally:
                process.kill()
                process.wait()
            seconds = time.monotonic() - begun
        # What was killed from afar needs a moment to go.
        limit = time.monotonic() + 3
        while (left := with_mark(mark)) and time.monotonic() < limit:
            time.sleep(0.05)
        result = Run(code, seconds, (folder / "said").read_text(), left, journal(out, "answer"))
        made.runs.append(result)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        return result

    run(end=signal.SIGKILL, when=lambda: len(journal(out, "answer")) >= 5)
    run(end=signal.SIGINT, when=lambda: len(journal(out, "answer")) >= 20)
    run()
    run("--keep", end=signal.SIGINT, when=lambda: "stays up" in (folder / "said").read_text())
    return made


def test_a_killed_demo_leaves_no_process(story):
    assert story.runs[0].code == -signal.SIGKILL
    assert story.runs[0].left_behind == []
    assert len(story.runs[0].answers) >= 5


def test_ctrl_c_stops_every_process_soon(story):
    run = story.runs[1]
    assert run.code == 130, run.said
    assert run.seconds < 60
    assert run.left_behind == []
    assert "The next start goes on where it was" in run.said
    assert "Traceback" not in run.said


def test_the_next_start_goes_on_where_it_was(story):
    first, second, third, _ = story.runs
    assert third.code == 0, third.said
    assert third.left_behind == []
    assert first.answers == second.answers[: len(first.answers)]
    assert second.answers == third.answers[: len(second.answers)]
    assert len(second.answers) < len(third.answers)
    assert len(journal(story.out, "fitted")) == 1
    numbers = [answer["number"] for answer in third.answers]
    assert sorted(numbers) == list(range(len(numbers)))


def test_no_request_failed_and_everything_was_recorded(story):
    figures = json.loads((story.out / "demo.json").read_text())
    assert figures["failed_requests"] == 0
    assert figures["unrecorded_answers"] == 0
    assert figures["requests"] == len(story.runs[2].answers)
    assert figures["starts"] == 3


def test_the_trainer_learned_by_itself_and_the_judge_spoke(story):
    figures = json.loads((story.out / "demo.json").read_text())
    first, *later = figures["turns"]
    assert first["candidates"][0]["outcome"] == "promote"
    assert later, story.runs[2].said
    assert all(one["sentence"] for turn in later for one in turn["candidates"])
    promoted = [one["version"] for turn in later for one in turn["candidates"] if one["outcome"] == "promote"]
    assert promoted, story.runs[2].said
    assert figures["version"] == promoted[-1]
    assert figures["accuracy"] > figures["accuracy_first_version"]


def test_the_report(story):
    report = (story.out / "report.html").read_text()
    figures = json.loads((story.out / "demo.json").read_text())
    for turn in figures["turns"]:
        for one in turn["candidates"]:
            assert f'href="versions/{one["version"]}/report.html"' in report
            assert (story.out / "versions" / one["version"] / "report.html").is_file()
    assert "/drift.html" in report
    assert (story.out / "accuracy.svg").is_file()
    assert (story.out / "accuracy.png").is_file()


def test_one_that_is_over_says_so_shows_it_again_and_keeps_the_api_up(story):
    run = story.runs[3]
    assert run.code == 0, run.said
    assert "is over" in run.said
    assert "--fresh" in run.said
    assert run.answers == story.runs[2].answers
    assert "what serves is right on" in run.said
    assert "The API stays up at http://127.0.0.1:" in run.said
    assert run.left_behind == []
