from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from perdure.client import Client
from perdure.errors import PerdureError
from perdure_services.demo import processes as processes_module
from perdure_services.demo.processes import Processes

SERVE = """
import http.server, sys, time
class Handler(http.server.BaseHTTPRequestHandler):
    asked = 0
    def do_GET(self):
        Handler.asked += 1
        ready = self.path == "/readyz" and Handler.asked > 2
        self.send_response(200 if ready else 503)
        self.end_headers()
        self.wfile.write(b'{"ready": true, "reason": "serving"}' if ready else b"")
    def log_message(self, *_):
        pass
server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(f"Perdure serves version v1 at http://127.0.0.1:{server.server_address[1]} (try http://x/docs)", flush=True)
server.serve_forever()
"""
SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def processes(tmp_path):
    """Processes whose programs are scripts, by the name of the command."""
    made = []

    def start(threads=1, **scripts):
        def command(name, *arguments):
            return [sys.executable, "-S", "-c", scripts[name], name, *arguments]

        config = tmp_path / "settings.yaml"
        config.write_text("")
        made.append(Processes(tmp_path, config, threads=threads, command=command))
        return made[-1]

    yield start
    for one in made:
        one.stop()


def nothing():
    return


def test_fit_runs_to_its_end(processes, tmp_path):
    ticks = []
    code = "import os, sys, time; time.sleep(0.3); print(sys.argv[1:], os.getcwd(), os.environ['OMP_NUM_THREADS'])"
    started = processes(fit=code)
    started.fit(tmp_path / "data", lambda: ticks.append(1))
    assert ticks
    said = (tmp_path / "logs" / "fit.log").read_text()
    assert said.split()[-2:] == [str(tmp_path), "1"]
    assert f"['fit', '--data', '{tmp_path / 'data'}', '--config', '{tmp_path / 'settings.yaml'}']" in said
    started.check()


def test_the_environment_has_no_say_in_settings(processes, tmp_path, monkeypatch):
    monkeypatch.setenv("PERDURE_REGISTRY__URL", "s3://something-real")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    started = processes(threads=0, fit="import os; print(sorted(os.environ), os.environ['OMP_NUM_THREADS'])")
    started.fit(tmp_path / "data", nothing)
    said = (tmp_path / "logs" / "fit.log").read_text()
    assert "PERDURE_" not in said
    assert said.split()[-1] == "7"


def test_a_fit_that_fails_shows_the_end_of_its_log(processes, tmp_path):
    code = "import sys; print('\\n'.join(f'line {n}' for n in range(99))); sys.exit(2)"
    with pytest.raises(PerdureError) as caught:
        processes(fit=code).fit(tmp_path / "data", nothing)
    assert "`perdure fit` ended with exit code 2" in str(caught.value)
    assert "line 98" in str(caught.value)
    assert "line 80" not in str(caught.value)
    assert str(tmp_path / "logs" / "fit.log") in str(caught.value)


def test_an_interrupted_fit_is_stopped(processes, tmp_path, gone):
    def interrupt():
        raise KeyboardInterrupt

    started = processes(fit=SLEEP)
    with pytest.raises(KeyboardInterrupt), started:
        started.fit(tmp_path / "data", interrupt)
    assert started.pids() == {}


def test_serve_is_waited_for_until_it_is_ready(processes):
    ticks = []
    url = processes(serve=SERVE).serve(lambda: ticks.append(1))
    assert url.startswith("http://127.0.0.1:")
    assert url.rpartition(":")[2].isdigit()
    assert len(ticks) >= 2
    # The third question is the first that it says yes to.
    with Client(url) as api:
        assert api.ready().ready


def test_a_port_that_is_taken_is_told(processes):
    code = "import sys; print('perdure serve: cannot listen at 127.0.0.1:80: choose another --port'); sys.exit(1)"
    with pytest.raises(PerdureError, match=r"(?s)`perdure serve` ended with exit code 1.*cannot listen at"):
        processes(serve=code).serve(nothing)


def test_an_api_that_never_gets_ready_is_given_up(processes, monkeypatch):
    monkeypatch.setattr(processes_module, "READY_SECONDS", 0.5)
    with pytest.raises(PerdureError, match=r"not ready within 0 s. It wrote nothing"):
        processes(serve=SLEEP).serve(nothing)


def test_one_that_dies_is_noticed(processes, until):
    started = processes(train="import os; print('last words', flush=True); os.kill(os.getpid(), 9)")
    started.train()
    pid = started.pids()["train"]
    until(lambda: Path(f"/proc/{pid}/status").read_text().count("State:\tZ"))
    with pytest.raises(PerdureError, match=r"(?s)`perdure train` was killed by signal 9.*last words"):
        started.check()


def test_leaving_the_block_stops_everything(processes, gone):
    with processes(serve=SERVE, train=SLEEP) as started:
        started.serve(nothing)
        started.train()
        started.check()
        pids = started.pids()
        assert set(pids) == {"serve", "train"}
    for pid in pids.values():
        gone(pid)


def test_one_that_does_not_listen_is_killed(processes, gone, monkeypatch, tmp_path, until):
    monkeypatch.setattr(processes_module, "GRACE_SECONDS", 0.2)
    here = tmp_path / "here"
    code = f"import signal, time; signal.signal(15, signal.SIG_IGN); open({str(here)!r}, 'w'); time.sleep(60)"
    with processes(train=code) as started:
        started.train()
        until(here.exists)
        pid = started.pids()["train"]
    gone(pid)


def test_a_killed_demo_leaves_nothing_behind(tmp_path, gone):
    (tmp_path / "settings.yaml").write_text("")
    program = f"""
import sys, time
from pathlib import Path
from perdure_services.demo.processes import Processes
code = "from perdure_services.trainer.child import follow_parent; follow_parent(); import time; time.sleep(60)"
made = Processes(Path({str(tmp_path)!r}), Path({str(tmp_path / "settings.yaml")!r}), threads=1,
                 command=lambda *arguments: [sys.executable, "-c", code])
made.train()
print(made.pids()["train"], flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as demo:
        pid = int(demo.stdout.readline())
        os.kill(pid, 0)
        time.sleep(0.1)
        demo.send_signal(signal.SIGKILL)
        demo.wait(5)
        gone(pid)
