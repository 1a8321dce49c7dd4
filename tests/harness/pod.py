"""Runs a pod's containers as processes of one network namespace: ``unshare -rn sh -c 'ip link set lo up && exec …'``.

A stand-in for the kubelet. It starts sidecars before containers, waits for startup probes, fills in what the downward
API and Secrets give, and sends SIGTERM in the reverse order. Volumes are folders, and an image is its entrypoint here.

``pod.py``: reads JSON ``{"pod": spec, "secrets": {name: {key: value}}, "entrypoints": {container: [word, ...]},
"environment": {}, "folder": path, "ask": [{"url", "headers", "body"}, ...], "run": [container, word, ...]}`` and writes
``{"answers": [[status, text], ...], "ran": [status, text], "ended": {container: status}, "logs": {container: text}}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FIELDS = {
    "metadata.name": "pod-0",
    "metadata.namespace": "prod",
    "spec.nodeName": "node-0",
    "status.hostIP": "127.0.0.1",
}


def variables(container: dict[str, Any], secrets: dict[str, dict[str, str]]) -> dict[str, str]:
    """The container's variables; ``$(NAME)`` is one before it."""
    found: dict[str, str] = {}
    for each in container["env"]:
        source = each.get("valueFrom", {})
        if "fieldRef" in source:
            value = FIELDS[source["fieldRef"]["fieldPath"]]
        elif "secretKeyRef" in source:
            value = secrets[source["secretKeyRef"]["name"]][source["secretKeyRef"]["key"]]
        else:
            value = re.sub(r"\$\((\w+)\)", lambda name: found[name[1]], each.get("value", ""))
        found[each["name"]] = value
    return found


class Container:
    """A running container."""

    def __init__(self, spec: dict[str, Any], given: dict[str, Any]) -> None:
        self.spec, self.folder = spec, Path(given["folder"])
        self.env = {**os.environ, **given["environment"], **variables(spec, given["secrets"])}
        for mount in spec["volumeMounts"]:
            if mount["mountPath"] not in ("/tmp", "/dev/shm"):  # noqa: S108 - only named here
                volume = self.folder / mount["name"]
                volume.mkdir(exist_ok=True)
                self.env = {name: text.replace(mount["mountPath"], str(volume)) for name, text in self.env.items()}
        self.log = self.folder / f"{spec['name']}.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*given["entrypoints"][spec["name"]], *spec["args"]],
                env=self.env, cwd=self.folder, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def start(self) -> None:
        """Wait as its startup probe does."""
        probe = self.spec["startupProbe"]
        (port,) = [p["containerPort"] for p in self.spec["ports"] if p["name"] == probe["httpGet"]["port"]]
        url = f"http://127.0.0.1:{port}{probe['httpGet']['path']}"
        deadline = time.monotonic() + probe["failureThreshold"] * probe.get("periodSeconds", 10)
        while ask({"url": url})[0] != 200:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"{self.spec['name']} is not ready:\n{self.log.read_text()[-4000:]}")
            time.sleep(0.5)

    def stop(self) -> int:
        """SIGTERM, and after a while SIGKILL to all of it. The exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            return -9
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)


def ask(question: dict[str, Any]) -> tuple[int, str]:
    """A GET, or a POST of JSON. Status 0: no answer."""
    body = json.dumps(question["body"]).encode() if "body" in question else None
    headers = {"Content-Type": "application/json", **question.get("headers", {})}
    request = urllib.request.Request(question["url"], body, headers)  # noqa: S310 - a URL of the test
    try:
        with urllib.request.urlopen(request, timeout=120) as reply:  # noqa: S310 - a URL of the test
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError as error:
        return 0, str(error)


def main(given: dict[str, Any]) -> dict[str, Any]:
    """Run the pod, ask, and stop it."""
    running: list[Container] = []
    result: dict[str, Any] = {"ended": {}}
    try:
        for spec in [*given["pod"].get("initContainers", []), *given["pod"]["containers"]]:
            running.append(Container(spec, given))
            running[-1].start()
        result["answers"] = [ask(question) for question in given["ask"]]
        name, *command = given["run"]
        (inside,) = [each for each in running if each.spec["name"] == name]
        done = subprocess.run(
            command, env=inside.env, cwd=inside.folder, capture_output=True, text=True, timeout=120, check=False
        )
        result["ran"] = [done.returncode, done.stdout + done.stderr]
    finally:
        for each in reversed(running):
            result["ended"][each.spec["name"]] = each.stop()
    result["logs"] = {each.spec["name"]: each.log.read_text() for each in running}
    return result


if __name__ == "__main__":
    json.dump(main(json.load(sys.stdin)), sys.stdout)
