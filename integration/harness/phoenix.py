"""A real Phoenix: an OTLP trace backend that takes spans by gRPC and HTTP and finds them again by a filter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.harness.processes import ROOT, Group, environment, free_port

COMMAND = ROOT / ".venv-phoenix/bin/phoenix"
_READY_S = 180.0
_FILTER = """
query ($filter: String!) {
  projects { edges { node { spans(first: 1000, filterCondition: $filter) { edges { node {
    context { spanId traceId }
  } } } } } }
}
"""


@dataclass
class Phoenix:
    """A running Phoenix and where it listens."""

    grpc: str
    http: str

    def spans(self) -> list[dict[str, Any]]:
        """All spans of the default project."""
        reply = httpx.get(f"{self.http}/v1/projects/default/spans", params={"limit": 1000}, timeout=30)
        return [] if reply.status_code == 404 else list(reply.raise_for_status().json()["data"])

    def found(self, condition: str) -> set[str]:
        """Ids of the spans that meet a filter, as a user writes it into the search field."""
        body = {"query": _FILTER, "variables": {"filter": condition}}
        data = httpx.post(f"{self.http}/graphql", json=body, timeout=30).raise_for_status().json()
        assert "errors" not in data, data
        projects = [edge["node"] for edge in data["data"]["projects"]["edges"]]
        return {edge["node"]["context"]["spanId"] for project in projects for edge in project["spans"]["edges"]}

    def wait_for(self, condition: Callable[[list[dict[str, Any]]], bool], timeout_s: float = 60.0) -> list[Any]:
        """Its spans once they meet a condition: it stores them after it has acknowledged them."""
        deadline = time.monotonic() + timeout_s
        while not condition(spans := self.spans()) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert condition(spans), f"{len(spans)} spans: {[span['name'] for span in spans]}"
        return spans


@contextmanager
def phoenix(folder: Path) -> Iterator[Phoenix]:
    if not COMMAND.exists():
        raise RuntimeError(f"{COMMAND} is missing: run `make test`, which installs it")
    http, grpc = free_port(), free_port()
    env = {"PHOENIX_HOST": "127.0.0.1", "PHOENIX_PORT": str(http), "PHOENIX_GRPC_PORT": str(grpc)}
    env |= {"PHOENIX_WORKING_DIR": str(folder / "phoenix"), "PHOENIX_TELEMETRY_ENABLED": "false"}
    (folder / "phoenix").mkdir()
    group = Group([str(COMMAND), "serve"], environment(env), folder, folder / "phoenix.log")
    running = Phoenix(f"http://127.0.0.1:{grpc}", f"http://127.0.0.1:{http}")
    try:
        deadline = time.monotonic() + _READY_S
        while True:
            try:
                httpx.get(f"{running.http}/healthz", timeout=2).raise_for_status()
                break
            except httpx.HTTPError:
                if group.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"Phoenix did not start:\n{group.text()[-3000:]}") from None
                time.sleep(0.5)
        yield running
    finally:
        group.stop(10.0)
