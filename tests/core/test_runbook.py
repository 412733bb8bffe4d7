"""What the documents for operators tell people to type is there to be typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from perdure.cli import build
from perdure.config import Settings
from perdure.config.settings import setting_names

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "perdure"
RUNBOOK = ROOT / "deploy" / "RUNBOOK.md"
SCALING = ROOT / "deploy" / "SCALING.md"
SECTIONS = [
    "Install",
    "Upgrade",
    "Back up and restore",
    "Rotate keys",
    "Forget a person",
    "Drift alarm",
    "Stuck turn",
    "Bad promotion",
    "Disk full",
    "Records not acknowledged",
    "Serving not ready",
    "Consumer lag",
]
FENCE = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")
CALL = re.compile(r"(?:^|\s)perdure (?=[a-z-])(.*)$")
SETTING = re.compile(r"(?:config\.)?[a-z]+(?:\.[A-Za-z_]+)+")


def typed(file: Path) -> list[str]:
    """Command lines in blocks that call `perdure`, without what comes before it."""
    lines = [line for block in FENCE.findall(file.read_text(encoding="utf-8")) for line in block.splitlines()]
    return [
        found[1]
        for line in lines
        if not line.startswith(("#", "helm", "kubectl create")) and (found := CALL.search(line))
    ]


def spans(file: Path) -> Iterator[str]:
    yield from SPAN.findall(FENCE.sub("", file.read_text(encoding="utf-8")))


def parsed(line: str, **options: Any) -> None:
    """Parses a command line as `perdure` would, and runs nothing."""
    words = shlex.split(line)
    command: Any = typer.main.get_command(build())
    context = command.make_context("perdure", words, resilient_parsing=False)
    while hasattr(command, "commands"):
        words = [*context._protected_args, *context.args]
        name, command, words = command.resolve_command(context, words)
        context = command.make_context(name, words, parent=context, **options)


def test_the_runbook_has_the_sections_that_alerts_name() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == SECTIONS
    named = {
        rule["annotations"]["runbook"].partition(": ")[2]
        for file in (CHART / "rules").glob("*.yaml")
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    assert named <= set(SECTIONS)


def test_every_alert_is_in_the_section_that_it_names() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    sections = dict(zip(SECTIONS, re.split(r"^## .+$", text, flags=re.MULTILINE)[1:], strict=True))
    for file in (CHART / "rules").glob("*.yaml"):
        for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]:
            for rule in group["rules"]:
                if "alert" in rule:
                    section = rule["annotations"]["runbook"].partition(": ")[2]
                    assert f"*{rule['alert']}*" in sections[section], f"{rule['alert']} is not told in {section!r}"


def test_each_section_says_what_to_type_and_when_it_is_over() -> None:
    for section in re.split(r"^## ", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        assert "**Done when**" in section, section.partition("\n")[0]


@pytest.mark.parametrize("line", typed(RUNBOOK))
def test_every_command_of_the_runbook_is_one(line: str) -> None:
    parsed(line)


def test_the_commands_of_the_runbook_were_found() -> None:
    names = {line.split()[0] for line in typed(RUNBOOK)}
    assert {
        "backup",
        "restore",
        "fit",
        "versions",
        "rollback",
        "promote",
        "memory",
        "forget",
        "update",
        "keys",
    } <= names
    with pytest.raises(Exception, match="No such option"):
        parsed("backup /backup/x --fast")
    with pytest.raises(Exception, match="No such command"):
        parsed("mend")
    with pytest.raises(Exception, match="Missing"):
        parsed("restore")


@pytest.mark.parametrize("file", [RUNBOOK, SCALING], ids=["runbook", "scaling"])
def test_commands_in_sentences_exist(file: Path) -> None:
    for span in spans(file):
        if (found := CALL.fullmatch(span)) and "…" not in span:
            parsed(found[1], resilient_parsing=True)


@pytest.mark.parametrize("file", [RUNBOOK, SCALING], ids=["runbook", "scaling"])
def test_settings_and_values_in_sentences_exist(file: Path) -> None:
    if not (CHART / "values.yaml").is_file():
        pytest.skip("the chart is not here, and some of these are its values")
    values = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
    sections = {*Settings.model_fields, *values}
    known = {*setting_names(), *(f"config.{name}" for name in setting_names())}
    for span in spans(file):
        name = re.split(r"[:=\s]", span)[0]
        if name.endswith(".db"):
            continue
        if SETTING.fullmatch(name) and name.split(".")[0] in sections and name not in known:
            assert _has(values, name.split(".")), f"{file.name} names {name}, which is no setting and no value"


def _has(values: Any, path: list[str]) -> bool:
    for name in path:
        if not isinstance(values, dict) or name not in values:
            return False
        values = values[name]
    return True
