"""Pods of the chart, run as processes of this machine: each container's command, environment, probes and ways out are
those of the rendered manifests.

What a node would do is done here by rewriting, since that works for everyone: every mount path, and the working folder,
becomes a folder of the pod; every container port a free one of this machine; 0.0.0.0 becomes 127.0.0.1. Nothing else is
changed, and a container gets no environment but that of its manifest, and where its programs are.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import yaml

Manifest = Mapping[str, Any]

ENDPOINT_SECONDS = 0.3
"""How long after a pod is deleted the balancers still send it connections: endpoints are followed, not known."""


def render(helm: Path, chart: Path, values: Path, **sets: str) -> tuple[Manifest, ...]:
    """The chart's objects for these values."""
    command = [str(helm), "template", "shop", str(chart), "--values", str(values)]
    for name, value in sets.items():
        command += ["--set", f"{name.replace('__', '.')}={value}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return tuple(each for each in yaml.safe_load_all(done.stdout) if each)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def until(true: Callable[[], object], seconds: float, why: Callable[[], str] = str) -> None:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"it never came true: {why()}"
        time.sleep(0.02)


@dataclass
class Cluster:
    """The objects of a release, and a folder for its claims and pods."""

    objects: Sequence[Manifest]
    folder: Path
    image: Mapping[str, Path]
    """What the images hold beside programs, by its path in them."""
    pods: list[Pod] = field(default_factory=list)

    def workload(self, component: str) -> Manifest:
        """The one workload of a component."""
        found = [
            each
            for each in self.objects
            if each["kind"] in ("Deployment", "StatefulSet", "CronJob")
            and each["metadata"]["labels"]["app.kubernetes.io/component"] == component
        ]
        assert len(found) == 1, [each["metadata"]["name"] for each in found]
        return found[0]

    def config_map(self, name: str) -> Mapping[str, str]:
        found = [each for each in self.objects if each["kind"] == "ConfigMap" and each["metadata"]["name"] == name]
        return dict(found[0]["data"])

    def pod(self, component: str, *, claims: Mapping[str, str] | None = None) -> Pod:
        """One more pod of a component; it is not started.

        Args:
            claims: other names for claims, as another release would have.
        """
        workload = self.workload(component)
        number = sum(pod.component == component for pod in self.pods)
        pod = Pod(self, component, number, workload["spec"]["template"]["spec"], workload["spec"], claims or {})
        self.pods.append(pod)
        return pod

    def close(self) -> None:
        for pod in self.pods:
            pod.kill()


class Pod:
    """One pod with its only container."""

    def __init__(
        self,
        cluster: Cluster,
        component: str,
        number: int,
        spec: Manifest,
        workload: Manifest,
        claims: Mapping[str, str],
    ) -> None:
        self.component = component
        self.name = f"{component}-{number}"
        self.spec = spec
        (container,) = spec["containers"]
        self.container: Manifest = container
        self.grace = float(spec["terminationGracePeriodSeconds"])
        self.root = cluster.folder / "pods" / self.name
        self.ports = {each["containerPort"]: free_port() for each in container.get("ports", ())}
        self._named = {each["name"]: self.ports[each["containerPort"]] for each in container.get("ports", ())}
        self.process: subprocess.Popen[bytes] | None = None
        self.log_file = cluster.folder / f"{self.name}.log"
        self.terminating = 0.0
        self.ready = False
        self.restarts = 0
        self._stop = threading.Event()
        self._kubelet: threading.Thread | None = None
        self.probes: list[str] = []
        self._image = cluster.image
        self._mount(cluster, workload, claims)

    # ── what the node prepares ──
    def _mount(self, cluster: Cluster, workload: Manifest, claims: Mapping[str, str]) -> None:
        claim_templates = {each["metadata"]["name"] for each in workload.get("volumeClaimTemplates", ())}
        volumes = {each["name"]: each for each in self.spec.get("volumes", ())}
        self.mounts: dict[str, Path] = {}
        for mount in self.container["volumeMounts"]:
            name = mount["name"]
            if name in claim_templates:
                place = cluster.folder / "claims" / f"{name}-{self.name}"
            elif "persistentVolumeClaim" in volumes[name]:
                claim = volumes[name]["persistentVolumeClaim"]["claimName"]
                place = cluster.folder / "claims" / claims.get(claim, claim)
            else:
                place = self.root / "volumes" / name
            place.mkdir(parents=True, exist_ok=True)
            self.mounts[mount["mountPath"]] = place
        for mount in self.container["volumeMounts"]:
            volume = volumes.get(mount["name"], {})
            if "configMap" in volume:
                for file, content in cluster.config_map(volume["configMap"]["name"]).items():
                    (self.mounts[mount["mountPath"]] / file).write_text(self.rewritten(content), encoding="utf-8")
        # The working folder is of the image, and read-only; what is mounted below it is not.
        self.work = self.root / "work"
        self.work.mkdir(parents=True)
        for path, place in self.mounts.items():
            with suppress(ValueError):
                inside = self.work / Path(path).relative_to(self.container["workingDir"])
                inside.symlink_to(place, target_is_directory=True)

    def rewritten(self, text: str) -> str:
        """`text` with this machine's folders, ports and address."""
        folders = {path: str(place) for path, place in {**self.mounts, **self._image}.items()}
        pattern = "|".join(re.escape(path) for path in sorted(folders, key=len, reverse=True))
        text = re.sub(rf"(?<![\w./])({pattern})(?=[/\s'\"]|$)", lambda found: folders[found[1]], text)
        return "127.0.0.1" if text == "0.0.0.0" else text

    @property
    def command(self) -> list[str]:
        """The container's own, command and arguments."""
        words = [self.rewritten(str(each)) for each in (*self.container["command"], *self.container.get("args", ()))]
        return [str(self.ports.get(int(each), each)) if each.isdigit() else each for each in words]

    @property
    def environ(self) -> dict[str, str]:
        """The container's own, and where programs are."""
        told = {each["name"]: self.rewritten(str(each["value"])) for each in self.container.get("env", ())}
        for name, value in told.items():
            if name.endswith("PORT") and value.isdigit():
                told[name] = str(self.ports[int(value)])
        here = {name: os.environ[name] for name in ("PYTHONPATH", "HF_HUB_OFFLINE") if name in os.environ}
        programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
        # Two cores for all of the cluster.
        return {"PATH": programs, "OMP_NUM_THREADS": "1", **here, **told}

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8") if self.log_file.exists() else ""

    def url(self, port: str) -> str:
        return f"http://127.0.0.1:{self._named[port]}"

    # ── its life ──
    def start(self) -> Pod:
        """Starts the container, and the probes that the kubelet asks."""
        self._begin()
        self._kubelet = threading.Thread(target=self._look_after, name=f"kubelet-{self.name}", daemon=True)
        self._kubelet.start()
        return self

    def _begin(self) -> None:
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, cwd=self.work, env=self.environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def run(self, *command: str, timeout: float = 300.0) -> str:
        """Runs a command in the container's place, as `kubectl exec` would; what it printed."""
        done = subprocess.run(
            [self.rewritten(each) for each in command],
            cwd=self.work,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def crash(self) -> None:
        """SIGKILL to the container, as the kernel does when memory is short; the kubelet starts it again in its pod."""
        assert self.process is not None
        self.ready = False
        self.process.kill()
        self.process.wait(10)
        self.restarts += 1
        self._begin()

    def delete(self) -> float:
        """Ends the pod as the kubelet does: preStop, SIGTERM, and SIGKILL at the end of the grace period.

        Returns:
            Seconds that it took of its grace.
        """
        assert self.process is not None
        begun = time.monotonic()
        self.terminating = begun
        before = self.container.get("lifecycle", {}).get("preStop")
        if before:
            subprocess.run([self.rewritten(each) for each in before["exec"]["command"]], check=True, env=self.environ)
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(self.grace - (time.monotonic() - begun))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)
            raise AssertionError(f"{self.name} was not gone after its grace of {self.grace:g} s: {self.log}") from None
        took = time.monotonic() - begun
        self._end()
        assert code == 0, f"{self.name} ended with {code}: {self.log}"
        assert sorted(each.name for each in self.work.iterdir() if not each.is_symlink()) == [], "the root is read-only"
        shutil.rmtree(self.root)
        return took

    def kill(self) -> None:
        """Ends it at once, whatever it does; for the end of a test."""
        self._end()
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait(10)

    def _end(self) -> None:
        self._stop.set()
        if self._kubelet is not None:
            self._kubelet.join(10)
        self.ready = False

    @property
    def serves(self) -> bool:
        """Whether balancers send it connections."""
        gone = self.terminating and time.monotonic() - self.terminating > ENDPOINT_SECONDS
        return self.ready and not gone

    # ── what the kubelet does ──
    def passes(self, probe: str) -> bool:
        """Whether a probe of the container succeeds now, by its own terms."""
        asked = self.container[probe]
        get = asked["httpGet"]
        try:
            answer = httpx.get(f"{self.url(get['port'])}{get['path']}", timeout=asked.get("timeoutSeconds", 1))
        except httpx.HTTPError:
            return False
        return 200 <= answer.status_code < 400

    def _look_after(self) -> None:
        startup, readiness, liveness = (
            self.container.get(f"{each}Probe") for each in ("startup", "readiness", "liveness")
        )
        restarts, started = -1, False
        begun = due_ready = due_live = 0.0
        unready = dead = 0
        while not self._stop.wait(0.05):
            now = time.monotonic()
            if restarts != self.restarts:
                restarts, started, begun, unready, dead = self.restarts, startup is None, now, 0, 0
                due_ready = due_live = now
            if not started:
                # Asked more often than the kubelet would, and no longer.
                started = self.passes("startupProbe")
                patience = startup["periodSeconds"] * startup["failureThreshold"] if startup else 0
                if not started and now - begun > patience:
                    self.probes.append(f"the start-up probe failed for {patience} s")
                    return
                continue
            if readiness is None:
                self.ready = True
            elif now >= due_ready:
                due_ready = now + readiness["periodSeconds"]
                unready = 0 if self.passes("readinessProbe") else unready + 1
                self.ready = unready == 0 or (self.ready and unready < readiness["failureThreshold"])
                if not self.ready:
                    # So that a test need not wait for the next period.
                    due_ready = now + 0.2
            if liveness is not None and now >= due_live:
                due_live = now + liveness["periodSeconds"]
                dead = 0 if self.terminating or self.passes("livenessProbe") else dead + 1
                if dead >= liveness["failureThreshold"]:
                    self.probes.append("the liveness probe failed")
                    return


class Balancer:
    """Hands each TCP connection to the next pod that is ready, as a Service does; bytes are not looked at."""

    def __init__(self, pods: Callable[[], Sequence[Pod]], port: str) -> None:
        self._pods = pods
        self._port = port
        self._turn = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.refused = 0
        threading.Thread(target=self._accept, name="balancer", daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            ready = [pod for pod in self._pods() if pod.serves]
            if not ready:
                self.refused += 1
                client.close()
                continue
            self._turn += 1
            place = ready[self._turn % len(ready)].url(self._port).rpartition(":")[2]
            try:
                server = socket.create_connection(("127.0.0.1", int(place)), timeout=5)
            except OSError:
                self.refused += 1
                client.close()
                continue
            server.settimeout(None)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=_pass_on, args=(source, target), daemon=True).start()

    def __enter__(self) -> Balancer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pass_on(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


def samples(pod: Pod, name: str, port: str) -> Iterator[tuple[Mapping[str, str], float]]:
    """The series of one family that a pod tells, with their labels."""
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(httpx.get(f"{pod.url(port)}/metrics", timeout=5).text):
        for sample in family.samples:
            if sample.name == name:
                yield sample.labels, sample.value


def metric(pod: Pod, name: str, port: str = "metrics") -> float:
    """The sum of a family's samples."""
    return sum(value for _, value in samples(pod, name, port))
