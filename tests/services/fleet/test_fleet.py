"""The parent of several workers, over workers that do nothing but say who they are."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from perdure_services.fleet.spec import Spec

pytestmark = pytest.mark.e2e

WORKER = """
import os, select, signal, socket, sys, threading, time
from perdure_services.fleet.beat import Beat
from perdure_services.fleet.hello import Hello

line = socket.socket(fileno=int(sys.argv[-1]))
hello = Hello.decode(sys.stdin.read())
how = hello.given.get(str(hello.place), "") if hello.restarts == 0 else hello.given.get("again", "")
state = {"live": True, "serving": how != "unready", "leaving": False, "taken": 0, "mute": False}
is_open = set()
asked = 0

def leave(number, frame):
    if how == "stubborn":
        return
    state["leaving"] = True

signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, signal.SIG_DFL)
if how == "broken":
    sys.exit(2)
if how == "late":
    time.sleep(1)

def answer(connection):
    with connection:
        while (said := connection.recv(100).decode()):
            if said == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            if said == "mute":
                state["mute"] = True
            if said == "sick":
                state["live"] = False
            state["asked"] = said == "ready?"
            connection.sendall(f"{hello.place} {os.getpid()} {hello.restarts} {asked}".encode())
    is_open.discard(connection)

while not (state["leaving"] and not is_open):
    if not state["mute"]:
        beat = Beat(
            live=state["live"], serving=state["serving"], leaving=state["leaving"], taken=state["taken"],
            open=len(is_open), asked=state.pop("asked", False), line=f"all {hello.processes} are ready",
        )
        try:
            line.send(beat.encode())
        except BrokenPipeError:
            break
    if not select.select([line], [], [], 0.05)[0]:
        continue
    message, files, _, _ = socket.recv_fds(line, 1, 1)
    if not message:
        break
    if message == b"a":
        asked += 1
    for file in files:
        state["taken"] += 1
        connection = socket.socket(fileno=file)
        is_open.add(connection)
        threading.Thread(target=answer, args=(connection,), daemon=True).start()
"""

PARENT = """
import sys
from perdure_services.fleet import __main__ as program, child, fleet
fleet.SILENT_SECONDS = 1.0
fleet.LATE_SECONDS = 0.7
fleet.FIRST_RESTART_SECONDS = 0.3
child.STALE_SECONDS = 0.3
sys.exit(program.main(sys.argv[1]))
"""


class Running:
    """A fleet."""

    def __init__(self, folder: Path, errors: Path, *, processes: int = 2, stop_seconds: float = 10, **given: str):
        self.folder, self.errors = folder, errors
        folder.mkdir()
        with socket.create_server(("127.0.0.1", 0), backlog=500) as listener:
            self.address = listener.getsockname()
            spec = Spec(
                command=(sys.executable, "-c", WORKER),
                processes=processes,
                given=given,
                listener=listener.fileno(),
                stop_seconds=stop_seconds,
                level=30,
                log="text",
            )
            spec.write(folder)
            with errors.open("wb") as log:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", PARENT, str(folder)],
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    pass_fds=[listener.fileno()],
                )

    def ready(self) -> Running:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == f"all {len(self.pids())} are ready\n", self.log()
        return self

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=10)

    def ask(self, said: str = "who") -> tuple[int, ...]:
        """Place, process, restarts, and times that it was told of readiness."""
        with self.connect() as connection:
            return say(connection, said)

    def pids(self) -> list[int]:
        """Of the workers."""
        return [
            int(pid) for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        ]

    def log(self) -> str:
        return self.errors.read_text(encoding="utf-8")

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


def say(connection: socket.socket, said: str) -> tuple[int, ...]:
    """What comes back; nothing where the worker dies."""
    connection.sendall(said.encode())
    try:
        return tuple(int(part) for part in connection.recv(100).split())
    except ConnectionResetError:
        return ()


def until(true, seconds: float = 10.0):
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)
    return found


@pytest.fixture
def fleet(tmp_path):
    started = []

    def start(**named):
        started.append(Running(tmp_path / f"fleet{len(started)}", tmp_path / "log", **named))
        return started[-1]

    yield start
    for running in started:
        running.process.kill()
        running.process.stdout.close()
        running.process.wait(10)


def test_connections_go_to_the_worker_that_has_the_fewest(fleet):
    running = fleet(processes=3).ready()
    connections = [running.connect() for _ in range(12)]
    places = [say(connection, "who")[0] for connection in connections]
    assert Counter(places) == {0: 4, 1: 4, 2: 4}
    # Those of one worker leave: it is the one that gets the next.
    for connection, place in zip(connections, places, strict=True):
        if place == 1:
            connection.close()
    time.sleep(0.3)
    more = [running.connect() for _ in range(4)]
    assert [say(connection, "who")[0] for connection in more] == [1, 1, 1, 1]
    for connection in connections + more:
        connection.close()
    assert running.end() == 0
    assert not running.folder.exists()
    assert "Traceback" not in running.log()


def test_the_parent_is_small(fleet):
    running = fleet().ready()
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    (resident,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS")]
    assert resident < 40_000, "kB"


def test_who_is_killed_is_started_again_and_the_other_answers_meanwhile(fleet):
    running = fleet().ready()
    places = {place: pid for place, pid, *_ in (running.ask() for _ in range(4))}
    assert set(places) == {0, 1}
    os.kill(places[1], signal.SIGKILL)
    until(lambda: places[1] not in running.pids())
    answers = []

    def back():
        answers.append(running.ask())
        return answers[-1][:1] == (1,) and answers[-1][1] != places[1]

    until(back)
    assert all(answer[1] == places[0] for answer in answers[:-1]), "nothing failed, and the dead one was not asked"
    assert answers[-1][2] == 1, "it knows that it was started again"
    assert "process 1 (" in running.log()
    assert "ended by SIGKILL: it is started again in 0.3 seconds" in running.log()
    assert running.end() == 0


def test_who_dies_again_and_again_is_started_less_and_less_often(fleet):
    running = fleet(again="broken").ready()
    assert running.ask("die") == ()
    until(lambda: "again in 1.2 seconds" in running.log())
    waits = [line.rsplit(" in ", 1)[1] for line in running.log().splitlines() if "started again" in line]
    assert waits == ["0.3 seconds", "0.6 seconds", "1.2 seconds"]
    assert running.ask()[0] in (0, 1)
    assert running.end() == 0


@pytest.mark.parametrize(("how", "said"), [("mute", "has told nothing for"), ("sick", "only a restart helps")])
def test_who_is_stuck_is_noticed_and_started_again(fleet, how, said):
    running = fleet().ready()
    place, pid, *_ = running.ask(how)
    until(lambda: said in running.log())
    until(lambda: any(running.ask()[:3:2] == (place, 1) for _ in range(2)))
    assert pid not in running.pids()
    assert running.end() == 0


def test_who_stands_still_gets_no_connections_while_others_are_there(fleet):
    running = fleet().ready()
    still = running.ask()[1]
    os.kill(still, signal.SIGSTOP)
    time.sleep(0.5)
    assert all(running.ask()[1] != still for _ in range(6))
    os.kill(still, signal.SIGCONT)


def test_who_does_not_serve_gets_connections_only_when_nobody_does(fleet):
    running = fleet(**{"0": "unready"}).ready()
    with running.connect() as held:
        assert say(held, "who")[0] == 1
        assert [running.ask()[0] for _ in range(4)] == [1, 1, 1, 1]
    alone = fleet(**{"0": "unready", "1": "unready"}).ready()
    assert {alone.ask()[0] for _ in range(4)} == {0, 1}


def test_nobody_is_ready_before_all_are_and_what_came_early_waits(fleet):
    running = fleet(**{"1": "late"})
    start = time.monotonic()
    assert running.ask()[0] == 0, "it waited in the socket's queue"
    assert time.monotonic() - start < 1.0
    running.ready()
    assert time.monotonic() - start > 1.0


def test_what_cannot_start_ends_the_others_too(fleet):
    running = fleet(**{"1": "broken"})
    assert running.process.wait(15) == 2
    assert "process 1 ended with exit code 2 before all were ready" in running.log()
    assert running.process.stdout.read() == ""
    assert not running.folder.exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_is_under_way_ends_before_the_parent_does(fleet, number):
    running = fleet().ready()
    if number == signal.SIGINT:
        assert running.end(number) == 0
        return
    with running.connect() as connection:
        say(connection, "who")
        running.process.send_signal(number)
        time.sleep(0.4)
        assert running.process.poll() is None
        assert say(connection, "still there?")
        with pytest.raises(OSError, match="refused"):
            running.connect()
    assert running.process.wait(10) == 0


def test_who_does_not_end_is_killed_and_that_is_no_clean_end(fleet):
    running = fleet(stop_seconds=0.5, **{"0": "stubborn"}).ready()
    start = time.monotonic()
    assert running.end() == 1
    assert 0.5 <= time.monotonic() - start < 5
    assert "does not end by itself, and is killed" in running.log()


def test_all_hear_that_one_was_asked_for_readiness_and_none_twice(fleet):
    running = fleet(processes=2).ready()
    with running.connect() as one, running.connect() as other:
        first, second = say(one, "ready?"), say(other, "who")
        assert {first[0], second[0]} == {0, 1}
        until(lambda: say(other, "who")[3] == 1)
        time.sleep(0.3)
        assert (say(one, "who")[3], say(other, "who")[3]) == (0, 1)


def test_workers_end_when_the_parent_is_killed(fleet):
    running = fleet().ready()
    pids = running.pids()
    running.process.kill()
    running.process.wait(10)
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))


def test_a_parent_that_was_stopped_itself_takes_nobody_for_stuck(fleet):
    running = fleet().ready()
    pids = running.pids()
    running.process.send_signal(signal.SIGSTOP)
    time.sleep(1.3)
    running.process.send_signal(signal.SIGCONT)
    time.sleep(0.4)
    assert running.pids() == pids
    assert running.log() == ""


def test_a_terminal_that_interrupts_reaches_the_parent_only(fleet):
    running = fleet().ready()
    groups = {os.getpgid(pid) for pid in running.pids()}
    assert os.getpgid(running.process.pid) not in groups


def test_connections_that_no_line_has_room_for_wait(fleet):
    running = fleet(processes=1).ready()
    (only,) = running.pids()
    os.kill(only, signal.SIGSTOP)
    connections = [running.connect() for _ in range(350)]
    time.sleep(0.2)
    os.kill(only, signal.SIGCONT)
    assert all(say(connection, "who")[0] == 0 for connection in connections)
    for connection in connections:
        connection.close()
    assert running.log() == ""


def test_what_a_fleet_is_told_comes_back_as_it_was(tmp_path):
    spec = Spec(("a", "b"), 3, {"x": [1, {"y": "\ud800"}]}, 4, 5.5, 20, "json")
    spec.write(tmp_path)
    assert Spec.read(tmp_path) == spec
    assert json.loads((tmp_path / "spec.json").read_text(encoding="utf-8"))["processes"] == 3
