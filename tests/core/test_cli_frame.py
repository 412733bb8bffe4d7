"""The frame of the command line: help, exit codes, and what an installation that only serves can do."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer

from perdure import __version__, cli
from perdure.errors import PerdureError, RegistryError, SettingError, StoreBusy, StreamError, UsageError

COMMANDS = {
    "demo": "the whole loop on",
    "fit": "Make version 1 from labelled rows.",
    "serve": "Start the online API: predictions, feedback, versions.",
    "train": "Keep learning: run turns of the loop on a schedule",
    "update": "Run one turn of the loop now",
    "backtest": "Run the loop over a recorded stream",
    "versions": "List versions, what the judge said of each",
    "promote": "Serve a version, whatever the judge said of it.",
    "rollback": "Go back to the version that was served before.",
    "keys": "Make, list and revoke the API keys",
    "memory": "Show what memory holds",
    "forget": "Remove a person's data from the stream and from memory",
}

TRAINING_ONLY = ("accelerate", "faiss", "peft", "evidently", "pandas", "matplotlib", "apscheduler", "scipy", "jinja2")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs `perdure ARGUMENTS` here; exit code, standard output and standard error on one line each."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["perdure", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        told = capsys.readouterr()
        return ended.value.code or 0, told.out, told.err

    return call


def test_the_help_names_every_command(run):
    code, out, _ = run("--help")
    assert code == 0
    for name in COMMANDS:
        assert f"│ {name} " in out
    assert "perdure demo" in out
    assert "Exit codes: 0 done, 1 failed, 2 wrong usage or input" in " ".join(out.split())
    # A newcomer reads from the top: what to try, what to make, what to run.
    assert out.index("│ demo ") < out.index("│ fit ") < out.index("│ serve ") < out.index("│ forget ")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_says_what_it_does(run, name):
    code, out, err = run(name, "--help")
    assert code == 0
    assert f"Usage: perdure {name}" in out
    assert COMMANDS[name] in " ".join(out.split())
    assert err == ""
    # Every option is explained.
    options = [line for line in out.splitlines() if line.startswith("│ *  --") or line.startswith("│    --")]
    assert all(len(line.rstrip("│ ").split("  ")) > 1 for line in options)


def test_the_version_is_printed(run):
    assert run("--version") == (0, f"{__version__}\n", "")


def test_without_a_command_the_help_is_shown(run):
    code, out, err = run()
    assert code == 2
    assert "Usage: perdure" in out + err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["fit"], "--data"),
        (["fit", "--data"], "--data"),
        (["nonsense"], "nonsense"),
        (["fit", "--data", "x", "--colour"], "--colour"),
        (["backtest", "--stream", "a", "--eval", "b", "--out", "c", "--memory-per-class", "0"], "memory-per-class"),
        (["promote"], "version"),
        (["update", "--set", "lora.rank"], "perdure: --set needs section.name=value, but got 'lora.rank'"),
        (["update", "--set", "lora.rnak=1"], "perdure: unknown setting 'lora.rnak': did you mean 'lora.rank'?"),
        (["update", "--config", "absent.yaml"], "perdure: cannot read the settings file absent.yaml"),
        (["fit", "--data", "absent.csv"], "perdure: cannot read the data file absent.csv: No such file or directory"),
        (["memory"], "perdure: there is no memory in var/perdure/memory: check memory.path"),
    ],
)
def test_wrong_usage_ends_with_2(run, arguments, told):
    code, out, err = run(*arguments)
    assert code == 2
    assert out == ""
    assert told in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong"), 2),
        (SettingError("wrong"), 2),
        (StoreBusy("busy"), 3),
        (RegistryError("broken"), 1),
        (StreamError("broken"), 1),
        (PerdureError("broken"), 1),
        (OSError(28, "No space left on device"), 1),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("No module named 'faiss'", name="faiss.swigfaiss"), 2),
    ],
)
def test_errors_become_exit_codes_and_one_sentence(run, monkeypatch, error, code):
    def fail(*_args, **_kwargs):
        raise error

    monkeypatch.setattr("perdure.commands.learning.load_settings", fail)
    found, out, err = run("update")
    assert found == code
    assert out == ""
    if isinstance(error, KeyboardInterrupt):
        assert err == ""
    else:
        assert err.startswith("perdure: ")
        assert err.count("\n") == 1
    if isinstance(error, ModuleNotFoundError):
        assert (
            err == "perdure: this command needs faiss, which is not installed: install perdure[cpu] or perdure[gpu]\n"
        )


def test_a_message_stays_on_one_line_and_brackets_stay_brackets(run, monkeypatch):
    def fail(*_args, **_kwargs):
        raise UsageError("label [/red] :bomb: is\n  not YAML")

    monkeypatch.setattr("perdure.commands.learning.load_settings", fail)
    assert run("update")[2] == "perdure: label [/red] :bomb: is not YAML\n"


def test_a_part_of_perdure_that_is_missing_is_a_bug_not_a_hint(run, monkeypatch):
    def fail(*_args, **_kwargs):
        raise ModuleNotFoundError("No module named 'perdure.nothing'", name="perdure.nothing")

    monkeypatch.setattr("perdure.commands.learning.load_settings", fail)
    monkeypatch.setattr(sys, "argv", ["perdure", "update"])
    with pytest.raises(ModuleNotFoundError):
        cli.main()


def test_a_command_chooses_its_exit_code(run, monkeypatch):
    app = typer.Typer(callback=lambda: None)

    @app.command("other")
    def other(code: Annotated[int, typer.Argument()]) -> None:
        raise typer.Exit(code)

    monkeypatch.setattr(cli, "build", lambda: app)
    assert run("other", "7")[0] == 7
    assert run("other", "0")[0] == 0


def test_threads_wait_without_spinning_and_nobody_is_counted(run, monkeypatch):
    import os

    for name in ("OMP_WAIT_POLICY", "DO_NOT_TRACK"):
        monkeypatch.delenv(name, raising=False)
    run("--version")
    assert (os.environ.pop("OMP_WAIT_POLICY"), os.environ.pop("DO_NOT_TRACK")) == ("PASSIVE", "1")


PROGRAM = "import sys; sys.argv = ['perdure', *sys.argv[1:]]; from perdure.cli import main; main()"

BLOCKER = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {TRAINING_ONLY!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def test_the_help_is_quick_and_needs_no_torch(tmp_path):
    program = (
        "import sys; sys.argv = ['perdure', '--help']\n"
        "from perdure.cli import main\n"
        "try: main()\n"
        f"finally: sys.stderr.write(' '.join(m for m in (*{TRAINING_ONLY!r}, 'torch') if m in sys.modules))"
    )
    taken = []
    for _ in range(3):
        seconds, ran = cpu_seconds(program, tmp_path)
        assert (ran.returncode, ran.stderr) == (0, "")
        # A busy machine needs longer for everything: then what the frameworks alone need is the measure.
        allowed = max(1.5, 4 * cpu_seconds("import fastapi, rich.console, typer", tmp_path)[0])
        taken.append((seconds, allowed))
        if seconds < allowed:
            return
    pytest.fail(f"the help takes longer (CPU seconds, allowed): {taken}")


def cpu_seconds(program: str, folder: Path) -> tuple[float, subprocess.CompletedProcess[str]]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, ran


@pytest.fixture
def serving_only(tmp_path, monkeypatch):
    """Runs `perdure ARGUMENTS` where nothing that only training needs can be imported."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "site"), prepend=":")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", PROGRAM, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=120
        )

    return call


def test_an_installation_that_only_serves_says_what_training_needs(serving_only):
    check = subprocess.run([sys.executable, "-c", "import scipy"], capture_output=True, text=True, timeout=60)
    assert "ModuleNotFoundError" in check.stderr, "the blocker does not block"
    ran = serving_only("serve", "--help")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "perdure serve" in ran.stdout
    ran = serving_only("versions")
    assert (ran.returncode, ran.stderr) == (0, "")
    assert "No versions in" in ran.stdout
    ran = serving_only("update")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.count("\n") == 1
    assert ran.stderr.startswith("perdure: this command needs ")
    assert ran.stderr.endswith("which is not installed: install perdure[cpu] or perdure[gpu]\n")


def test_time_is_not_spent_before_it_is_needed(tmp_path):
    """What training needs is imported by the commands that train, not by those that only look."""
    program = (
        "import sys; sys.argv = ['perdure', 'versions']\n"
        "from perdure.cli import main\n"
        "try: main()\n"
        f"finally: sys.stderr.write(' '.join(m for m in (*{TRAINING_ONLY!r}, 'torch') if m in sys.modules))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
