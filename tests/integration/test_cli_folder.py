"""Commands on a real folder, made by `perdure fit` with the tiny encoder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from perdure import cli
from perdure.records import Interaction, now
from perdure.stream import SqliteStream


@pytest.fixture
def perdure(monkeypatch, capsys, tmp_path, desk):
    """Runs `perdure ARGUMENTS` in a folder with a perdure.yaml; exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    # As wide as it takes, so that no table is cut.
    monkeypatch.setenv("COLUMNS", "400")
    tree = desk.settings.model_dump(mode="json")
    tree["lora"]["enabled"] = False
    Path("perdure.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

    def call(*arguments: str, config: bool = True) -> tuple[int, str, str]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["perdure", *arguments, *(["--config", "perdure.yaml"] if config else [])])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return call


@pytest.fixture
def data(tmp_path, sentences):
    path = tmp_path / "rows.jsonl"
    rows = [
        {"text": text, "label": label, **({"subject": "ann"} if label == "login" else {})}
        for label in ("refund", "parcel", "login")
        for text in sentences(label, 15)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def fitted(perdure, data):
    code, out, err = perdure("fit", "--data", str(data))
    assert (code, err) == (0, ""), err
    assert f"45 rows with 3 labels recorded from {data}." in out
    assert "v000001-head" in out
    assert "Gate: learn 45, skip 0" in out
    assert out.rstrip().endswith("Serving: v000001-head.")
    return perdure


def parsed(answer: tuple[int, str, str]):
    code, out, err = answer
    assert (code, err) == (0, ""), err
    return json.loads(out)


def test_fit_makes_version_1_and_fitting_again_changes_nothing(fitted, data):
    before = parsed(fitted("memory", "--json"))
    result = parsed(fitted("fit", "--data", str(data), "--json"))
    assert (result["note"], result["champion"], result["candidates"]) == ("nothing new", "v000001-head", [])
    code, out, _ = fitted("fit", "--data", str(data))
    assert code == 0
    assert out.endswith("Nothing new to learn from. Serving: v000001-head.\n")
    after = parsed(fitted("memory", "--json"))
    assert {**after, "totals": None, "memory_bytes": 0} == {**before, "totals": None, "memory_bytes": 0}
    assert len(parsed(fitted("versions", "--json"))["versions"]) == 1


@pytest.fixture
def cards(tmp_path, sentences):
    """Rows of one label, which `data` has not."""
    path = tmp_path / "more.csv"
    path.write_text("text,label\n" + "".join(f"{text},card\n" for text in sentences("card", 15)), encoding="utf-8")
    return path


def test_a_first_version_needs_two_labels(perdure, cards):
    code, _, err = perdure("fit", "--data", str(cards))
    assert code == 2
    assert "all 15 rows of" in err
    assert "have the label 'card': a first version needs at least two" in err


def test_fit_learns_a_new_label_on_top(fitted, cards):
    result = parsed(fitted("fit", "--data", str(cards), "--json"))
    assert result["champion_before"] == "v000001-head"
    assert [(one["version"], one["outcome"]) for one in result["candidates"]] == [("v000002-head", "promote")]
    assert parsed(fitted("memory", "--json"))["labels"]["card"] == 15


def test_the_label_file_is_kept_to(perdure, data, tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("refund\nparcel\n", encoding="utf-8")
    code, out, err = perdure("fit", "--data", str(data), "--labels", str(labels))
    assert (code, out) == (2, "")
    assert err == f"perdure: {data}, line 31: label 'login' is not in the label file: add it there, or mend it\n"
    assert not (tmp_path / "desk" / "stream.db").exists(), "nothing may be recorded of a file that is refused"
    labels.write_text("refund\n", encoding="utf-8")
    code, _, err = perdure("fit", "--data", str(data), "--labels", str(labels))
    assert code == 2
    assert "has 1 label, 'refund': a classifier needs at least two" in err


def test_a_model_that_cannot_be_found_is_told(perdure, data, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    code, _, err = perdure("fit", "--data", str(data), "--model", "no/such-model")
    assert code == 2
    assert err.startswith("perdure: ")
    assert "no/such-model" in err
    assert err.count("\n") == 1


def test_update_with_nothing_new_says_so(fitted):
    assert fitted("update") == (0, "Nothing new to learn from. Serving: v000001-head.\n", "")
    assert parsed(fitted("update", "--json"))["note"] == "nothing new"


def test_update_while_another_process_has_the_memory_ends_with_3(fitted, desk):
    with desk.memory(read_only=False):
        code, out, err = fitted("update")
    assert (code, out) == (3, "")
    assert err.startswith("perdure: the memory ")
    assert "is being written by process" in err
    assert err.count("\n") == 1


def test_versions_shows_what_is_served_and_why(fitted):
    code, out, err = fitted("versions")
    assert (code, err) == (0, "")
    line = next(line for line in out.splitlines() if "v000001-head" in line)
    assert "▶" in line
    assert "promote" in line
    assert "v000001-head: " in out
    assert "first version" in out.lower()
    told = parsed(fitted("versions", "--json"))
    assert told["champion"] == "v000001-head"
    assert told["damaged"] == {}
    assert [one["version"] for one in told["promotions"]] == ["v000001-head"]
    assert told["versions"][0]["labels"] == ["login", "parcel", "refund"]


def test_versions_shows_a_damaged_one_beside_the_others(fitted, desk, sentences):
    desk.teach("card", name="more", at=now())
    assert fitted("update")[0] == 0
    card = desk.folder / "registry" / "versions" / "v000001-head" / "card.json"
    card.write_bytes(card.read_bytes().replace(b'"turn": 1', b'"turn": 7'))
    code, out, err = fitted("versions")
    assert (code, err) == (0, "")
    assert "v000002-head" in out
    assert "damaged" in next(line for line in out.splitlines() if "v000001-head" in line)
    assert (
        "card.json of version v000001-head is damaged"
        in parsed(fitted("versions", "--json"))["damaged"]["v000001-head"]
    )


def test_promote_and_rollback(fitted, desk):
    desk.teach("card", name="more", at=now())
    assert fitted("update")[0] == 0
    code, out, _ = fitted("rollback", "--reason", "too eager")
    assert code == 0
    assert out.startswith("Promotion 3: v000001-head is served from now on (too eager).\n")
    assert "does not promote v000002-head again by itself" in out
    entry = parsed(fitted("promote", "v000002-head", "--json"))
    assert (entry["number"], entry["version"], entry["reason"]) == (4, "v000002-head", "by hand")
    assert entry["by"] not in ("", "judge")
    assert [one.version for one in desk.registry().promotions()] == [
        "v000001-head",
        "v000002-head",
        "v000001-head",
        "v000002-head",
    ]


def test_what_cannot_be_promoted_or_rolled_back_ends_with_1(fitted):
    code, out, err = fitted("promote", "v000001-haed")
    assert (code, out) == (1, "")
    assert "there is no version 'v000001-haed'" in err
    assert "did you mean v000001-head?" in err
    code, _, err = fitted("rollback")
    assert code == 1
    assert err.startswith("perdure: there is no champion before v000001-head")


def test_memory_shows_samples_and_quarantine(fitted, desk, sentences):
    code, out, err = fitted("memory")
    assert (code, err) == (0, "")
    for label in ("refund", "parcel", "login"):
        assert any(label in line and "15" in line for line in out.splitlines())
    assert "45 samples (" in out
    told = parsed(fitted("memory", "--json"))
    assert told["labels"] == {"login": 15, "parcel": 15, "refund": 15}
    assert "quarantine" not in told
    assert fitted("memory", "--quarantine")[1] == "Nothing is in quarantine.\n"

    # Rich would take these brackets for markup, and fail on the second.
    desk.send([("[bold] what", "[/red]"), ("is :bomb: it", "[/red]")], name="few", at=now())
    with SqliteStream(desk.folder / "stream.db") as stream:
        stream.append([Interaction(time=9e12, id="from-the-future", text="[/blue] later")])
    assert fitted("update")[0] == 0
    code, out, err = fitted("memory")
    assert (code, err) == (0, "")
    assert "[/red] (too few to be a class)" in out
    code, out, _ = fitted("memory", "--quarantine")
    assert code == 0
    assert "more than a day ahead of this machine's clock" in out
    told = parsed(fitted("memory", "--quarantine", "--json"))
    assert told["pending"] == {"[/red]": 2}
    assert len(told["quarantine"]) == 1
    assert "a day ahead" in told["quarantine"][0]["reason"]


def test_forget_removes_a_person_and_says_what_is_left(fitted, desk, sentences):
    told = parsed(fitted("forget", "ann", "--json"))
    assert told["stream_entries_removed"] == 30
    assert (told["samples_removed"], told["memory"]) == (15, "now")
    assert told["head"] == "gives the labels back, with the next turn"
    assert any("already trained" in one for one in told["not_reached"])
    with SqliteStream(desk.folder / "stream.db") as stream:
        left = b"".join(entry.payload for entry in stream.read({}, 1000).entries)
    assert not any(text.encode() in left for text in sentences("login", 15))
    assert parsed(fitted("memory", "--json"))["samples"] == 30
    assert fitted("update")[0] == 0
    assert desk.statistics().counts == {"parcel": 15, "refund": 15}
    code, out, _ = fitted("rollback")
    assert code == 0
    assert "Its head still knows rows that were forgotten" in out
    assert fitted("update")[0] == 0, "it makes one without them"
    code, out, _ = fitted("promote", desk.registry().champion().version)
    assert "forgotten" not in out
    code, out, _ = fitted("forget", "nobody")
    assert code == 0
    assert out.startswith("Stream: 0 entries removed. Memory: 0 samples removed, now.\n")


def test_forget_while_the_trainer_runs_is_done_with_its_next_turn(fitted, desk):
    with desk.memory(read_only=False):
        told = parsed(fitted("forget", "ann", "--json"))
        assert told["memory"] == "with the next turn: the trainer has the memory open"
        assert told["stream_entries_removed"] == 30
    assert parsed(fitted("memory", "--json"))["samples"] == 45
    assert fitted("update")[0] == 0
    assert parsed(fitted("memory", "--json"))["samples"] == 30
    assert desk.statistics().counts == {"parcel": 15, "refund": 15}


@pytest.mark.parametrize(("subject", "said"), [("", "is empty"), ("x" * 5000, "has 5,000 characters")])
def test_forget_says_what_is_wrong_with_a_name(perdure, subject, said):
    code, out, err = perdure("forget", subject)
    assert (code, out) == (2, "")
    assert f"{said}: give 1 to 1,000 characters" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", [("promote", "v000001-head"), ("rollback",)])
def test_a_promotion_by_hand_has_a_reason(fitted, command):
    code, out, err = fitted(*command, "--reason", "  ")
    assert (code, out) == (2, "")
    assert "says nothing" in err
    assert len(parsed(fitted("versions", "--json"))["promotions"]) == 1


def test_fit_records_nothing_where_the_encoder_is_not_there(perdure, tmp_path):
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + "x,a\ny,b\n" * 4, encoding="utf-8")
    code, out, err = perdure("fit", "--data", str(rows), "--model", "no-such-model")
    assert (code, out) == (2, "")
    assert "no-such-model" in err
    told = parsed(perdure("update", "--json"))
    assert (told["note"], told["ingested"]["interactions"]) == ("nothing new", 0)


def test_forget_needs_no_model_and_no_first_version(perdure):
    told = parsed(perdure("forget", "ann", "--json", "--set", "model.name=no-such-model"))
    assert (told["samples_removed"], told["memory"]) == (0, "now")


def test_backtest_writes_figures_and_report(perdure, tmp_path, sentences):
    for name, seed in (("stream", 0), ("eval", 5)):
        rows = [
            {"text": text, "label": label, "session": session}
            for session, label in ((0, "refund"), (0, "parcel"), (1, "login"))
            for text in sentences(label, 12, seed=seed)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    arguments = ("backtest", "--stream", "stream.jsonl", "--eval", "eval.jsonl", "--out", "out", "--seed", "5")
    code, out, err = perdure(*arguments, "--memory-per-class", "4")
    assert code == 0
    assert [line.partition(":")[0] for line in err.splitlines()] == ["session 0", "session 1"]
    assert out.startswith("acc ")
    assert out.rstrip().endswith(f"Figures: {Path('out/metrics.json')}. Report: {Path('out/report.html')}.")
    metrics = parsed(perdure(*arguments, "--memory-per-class", "4", "--json"))
    assert metrics["memory_samples"] == 12
    assert (metrics["seed"], metrics["config"]["memory"]["per_class"]) == (5, 4)
    assert metrics == json.loads(Path("out/metrics.json").read_text(encoding="utf-8"))
    assert "<html" in Path("out/report.html").read_text(encoding="utf-8")
    code, _, err = perdure(*arguments, "--memory-per-class", "5")
    assert code == 2
    assert "memory.per_class 4 instead of 5: give another --out" in err
