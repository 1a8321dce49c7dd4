"""The dashboards' files. ``python -m dashboards.source.boards`` prints them as one JSON object."""

import json
import os
import subprocess
import sys
import warnings
from typing import Final

with warnings.catch_warnings():
    # The SDK would rather make Grafana's next format, which Grafana 11 does not read.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="grafana_foundation_sdk")
    from dashboards.source import fleet, frame, itself, model, requests, runbooks
    from dashboards.source.config import FOR

_PARTS: Final = (fleet, model, requests, itself, runbooks)


def files() -> dict[str, str]:
    """Each dashboard's JSON by its file's name."""
    return {f"corevital-{part.__name__.rsplit('.', 1)[1]}.json": frame.as_json(part.dashboard()) for part in _PARTS}


def files_for_kubernetes() -> dict[str, str]:
    """The same with what differs in Kubernetes, from a process with that configuration."""
    command = [sys.executable, "-m", "dashboards.source.boards"]
    done = subprocess.run(command, env=os.environ | {FOR: "kubernetes"}, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 - a list of ours, without a shell
    made: dict[str, str] = json.loads(done.stdout)
    return made


if __name__ == "__main__":
    sys.stdout.write(json.dumps(files()))
