from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from subprocess import DEVNULL, PIPE

import pytest

from perdure_services.trainer.child import Child, perdure

FOLLOWER = "from perdure_services.trainer.child import follow_parent; follow_parent(); import time; "

PARENT = f"""
import sys, time
from subprocess import DEVNULL
from perdure_services.trainer.child import Child

child = Child([sys.executable, "-c", {FOLLOWER + "time.sleep(60)"!r}], stdout=DEVNULL, stderr=DEVNULL)
print(child.pid, flush=True)
time.sleep(60)
"""

FAMILY = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); "
    "print('ready', flush=True); time.sleep(60)"], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_child_dies_with_a_parent_that_was_killed(gone, number):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(number)
        parent.wait(5)
        gone(child)


def test_a_child_lives_while_its_parent_does():
    child = Child([sys.executable, "-c", f"{FOLLOWER}time.sleep(0.3)"], stdout=DEVNULL, stderr=DEVNULL)
    assert child.wait(0.05) is None
    assert child.wait(10) == 0
    assert child.stop(0) == 0


def test_stopping_asks_first():
    code = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(7)); print(1, flush=True); time.sleep(60)"
    read, write = os.pipe()
    child = Child(python(code), stdout=write, stderr=DEVNULL)
    os.read(read, 1)
    assert child.stop(5) == 7
    os.close(read)
    os.close(write)


def test_stopping_reaches_what_the_child_started_and_what_does_not_listen(gone):
    read, write = os.pipe()
    child = Child(python(FAMILY), stdout=write, stderr=DEVNULL)
    grandchild = int(os.read(read, 100))
    begun = time.monotonic()
    assert child.stop(0.2) == -signal.SIGKILL
    assert time.monotonic() - begun < 3
    gone(grandchild)
    os.close(read)
    os.close(write)


def test_what_a_child_left_behind_is_stopped_too(gone):
    code = "import subprocess, sys; p = subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep(60)']); "
    code += "print(p.pid, flush=True); sys.exit(0)"
    read, write = os.pipe()
    child = Child(python(f"import warnings; warnings.simplefilter('ignore'); {code}"), stdout=write, stderr=DEVNULL)
    left = int(os.read(read, 100))
    assert child.wait(5) == 0
    os.kill(left, 0)
    child.stop(0)
    gone(left)
    os.close(read)
    os.close(write)


def test_a_ctrl_c_in_the_terminal_is_not_for_the_child():
    child = Child(python("import time; time.sleep(60)"), stdout=DEVNULL, stderr=DEVNULL)
    assert os.getpgid(child.pid) == child.pid
    assert os.getsid(child.pid) == child.pid
    child.stop(1)


def test_the_code_tells_how_it_ended():
    child = Child(python("import os; os.kill(os.getpid(), 9)"), stdout=DEVNULL, stderr=DEVNULL)
    assert child.wait(5) == -9
    assert child.code() == -9
    child.stop(0)


def test_the_command_is_ours(tmp_path):
    with (tmp_path / "out").open("w+b") as out:
        child = Child(perdure("train", "--help"), stdout=out, stderr=DEVNULL)
        assert child.wait(30) == 0
        child.stop(0)
    assert (tmp_path / "out").read_text().count("--once") == 1
