from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from pathlib import Path

import pytest

import overload
from overload import Load, Outcome


class Endpoint:
    """A server that answers every request as its script says, after a pause."""

    def __init__(self, script: list[tuple[int, str]], pause: float = 0.0) -> None:
        self.script = script
        self.pause = pause
        self.seen: list[bytes] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(size)
            except asyncio.IncompleteReadError:
                break
            self.seen.append(head + body)
            await asyncio.sleep(self.pause)
            status, extra = self.script[min(len(self.seen), len(self.script)) - 1]
            writer.write(f"HTTP/1.1 {status} X\r\n{extra}content-length: 2\r\n\r\n{{}}".encode())
        writer.close()
        self.open -= 1

    def asked(self, work: str, *arguments: float, limit: float = 1.0) -> Outcome:
        """What a load that is run against it becomes."""

        async def run() -> Outcome:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            load = Load(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", limit, seed=1)
            outcome: Outcome = await getattr(load, work)(*arguments)
            await load.close()
            server.close()
            while self.open:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.01)
            return outcome

        return asyncio.run(run())


def test_a_closed_loop_keeps_so_many_under_way() -> None:
    endpoint = Endpoint([(200, "")], pause=0.02)
    outcome = endpoint.asked("closed", 3, 0.3)
    assert 10 <= outcome.statuses["200"] <= 48
    assert json.loads(endpoint.seen[0].split(b"\r\n\r\n")[1])["text"] in overload.SENTENCES
    assert b"X-Request-Timeout-Ms: 1000\r\n" in endpoint.seen[0]


def test_an_open_loop_does_not_wait_for_answers_and_counts_from_when_they_were_due() -> None:
    outcome = Endpoint([(200, "")], pause=0.4).asked("open", 100.0, 0.3)
    assert 15 <= sum(outcome.statuses.values()) <= 50
    assert min(outcome.answered) >= 0.4
    row = outcome.row(0.3, 100.0)
    assert (row["times_capacity"], row["goodput_per_second"]) == (1.0, 0.0)
    all_of_them = sum(outcome.statuses.values()) / 0.3
    assert outcome.row(30.0, 100.0)["goodput_per_second"] == pytest.approx(all_of_them, rel=0.01)


def test_who_tries_again_waits_for_as_long_as_was_said() -> None:
    endpoint = Endpoint([(429, "retry-after: 1\r\n"), (200, "")])
    outcome = endpoint.asked("open", 2.0, 1.9, 3)
    assert outcome.statuses["429"] == 1
    assert outcome.retry_after == [1.0]
    assert outcome.statuses["200"] >= 1
    again = Endpoint([(429, "retry-after: 9\r\n")]).asked("open", 30.0, 0.2, 3)
    assert again.statuses["429"] == len(again.refused) == sum(again.statuses.values())


def test_a_connection_that_idled_too_long_is_made_anew() -> None:
    outcome = Endpoint([(200, "connection: close\r\n")]).asked("closed", 1, 0.1)
    assert outcome.statuses["200"] > 1
    assert outcome.statuses["broken"] == 0


def test_figures_of_nothing_are_none() -> None:
    row = Outcome(5.0, Counter({"broken": 3}), seconds=1.0).row(1.0, 10.0)
    assert row["p99_ms"] is None
    assert row["retry_after_seconds"] is None
    assert row["goodput_per_second"] == 0.0
    assert math.isclose(row["times_capacity"], 0.5)


def test_it_runs_at_a_tiny_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "RATES", (0.5, 3.0))
    monkeypatch.setattr(overload, "CONNECTIONS", 4)
    out = tmp_path / "overload.json"
    arguments = ["--seconds", "0.5", "--text-ms", "20", "--batch-ms", "5", "--set", "serving.max_queue=3"]
    assert overload.main([*arguments, "--out", str(out)]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert {"setup", "model", "settings", "capacity_per_second", "rows", "goodput_kept", "reached"} <= set(result)
    assert result["model"] == {"batch": 5.0, "text": 20.0}
    rates = [(row["times_capacity"], row["retries"]) for row in result["rows"]]
    assert rates == [(0.5, False), (3.0, False), (3.0, True)]
    assert 0 < result["capacity_per_second"] < 60
    assert set(result["rows"][1]["statuses"]) <= {"200", "429", "504"}
    assert 0.0 <= result["goodput_kept"] <= 1.0
