"""Forgetting a person whose records lie where single ones cannot be removed."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from perdure.cli import build
from perdure.config import load_settings
from perdure.memory import ingest, open_memory
from perdure.records import Feedback, Interaction

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(60)]


def test_what_cannot_be_reached_is_said_and_memory_refuses_it(open_kafka, settings_of, tmp_path):
    stream = open_kafka()
    said = [
        Interaction(time=1.0, id="a", text="my card is lost", subject="ann"),
        Feedback(time=2.0, interaction="a", label="card"),
        Interaction(time=1.0, id="b", text="where is my parcel", subject="bob"),
        Feedback(time=2.0, interaction="b", label="parcel"),
    ]
    stream.append(said)
    settings = settings_of()
    config = tmp_path / "settings.yaml"
    config.write_text(
        json.dumps(
            {
                "stream": {"url": settings.url, "topic": settings.topic},
                "memory": {"path": str(tmp_path / "m")},
                "registry": {"url": str(tmp_path / "r")},
            }
        )
    )
    ran = CliRunner().invoke(build(), ["forget", "ann", "--json", "--config", str(config)])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert told["stream_entries_removed"] == 0
    assert any("until its retention ends" in one for one in told["not_reached"])
    # Everything is delivered again, the erasure among it.
    stream.append(said)

    with open_memory(load_settings(config)) as memory:
        ingest(stream, memory)
        assert {sample.text for sample in memory.samples()} == {"where is my parcel"}
        assert "my card is lost" not in {delta.text for delta in memory.deltas(100)}
