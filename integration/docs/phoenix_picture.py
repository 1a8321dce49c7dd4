"""The picture of docs/operate/backends.md: ``python -m integration.docs.phoenix_picture docs/pictures/phoenix.png``.

A caller's trace through a real server in a real Phoenix, found by a filter on the score. Needs Chromium on PATH
(Debian's ``chromium``) and ``pip install playwright``. Not a test: only a person can judge a picture.
"""

import shutil
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlencode

import httpx
from integration.harness.phoenix import Phoenix, phoenix
from integration.harness.vllm_server import MODEL_NAME, vllm
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from playwright.sync_api import sync_playwright

FILTER = "attributes['corevital']['risk_score'] > 0.5"
PROMPTS = (
    "What is 14 + 21?", "What is the capital of Mardony?", "Count from 9 to 19.", "Say snow tock hop jump forever.",
)  # fmt: skip


def main(picture: str) -> None:
    browser = shutil.which("chromium")
    if browser is None:
        sys.exit("there is no chromium on PATH: apt-get install chromium")
    with tempfile.TemporaryDirectory() as name, phoenix(Path(name)) as backend:
        env = {"OTEL_EXPORTER_OTLP_ENDPOINT": backend.grpc, "COREVITAL_OTEL_PROFILE": "phoenix"}
        env |= {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none", "OTEL_BSP_SCHEDULE_DELAY": "200"}
        with vllm(Path(name), env=env) as server:
            ask(server.url, backend)
        span_id, trace_id = at_risk(backend)
        address = page(backend, trace_id, span_id)
        with sync_playwright() as play:
            tab = play.chromium.launch(executable_path=browser).new_page(viewport={"width": 2000, "height": 950})
            tab.goto(address)
            tab.get_by_role("tab", name="Attributes").last.click()
            tab.wait_for_timeout(3000)
            tab.screenshot(path=picture)


def ask(url: str, backend: Phoenix) -> None:
    """Requests within a caller's spans."""
    provider = TracerProvider(resource=Resource.create({"service.name": "checkout"}))
    provider.add_span_processor(SimpleSpanProcessor(OTLPSpanExporter(endpoint=backend.grpc, insecure=True)))
    tracer = provider.get_tracer("checkout")
    for number, prompt in enumerate(PROMPTS * 3):
        with tracer.start_as_current_span("answer a customer", kind=trace.SpanKind.CLIENT):
            headers: dict[str, str] = {}
            propagate.inject(headers)
            body = {"model": MODEL_NAME, "messages": [{"role": "user", "content": prompt}], "seed": number}
            more = {"temperature": 0.9, "max_tokens": 160}
            httpx.post(f"{url}/v1/chat/completions", json=body | more, headers=headers, timeout=120).raise_for_status()
    provider.shutdown()


def at_risk(backend: Phoenix) -> tuple[str, str]:
    """A span that the filter finds, and its trace."""
    backend.wait_for(lambda spans: len(spans) == 3 * 3 * len(PROMPTS))  # caller, HTTP, request
    found = backend.found(FILTER)
    contexts = [span["context"] for span in backend.spans() if span["context"]["span_id"] in found]
    assert contexts, "no answer was at risk"
    return contexts[0]["span_id"], contexts[0]["trace_id"]


def page(backend: Phoenix, trace_id: str, span_id: str) -> str:
    """Address of the spans that the filter finds, with the trace of one of them open."""
    query = f'{{ projects {{ edges {{ node {{ id name }} }} }} getSpanByOtelId(spanId: "{span_id}") {{ id }} }}'
    data = httpx.post(f"{backend.http}/graphql", json={"query": query}, timeout=30).raise_for_status().json()["data"]
    (project,) = (edge["node"]["id"] for edge in data["projects"]["edges"] if edge["node"]["name"] == "default")
    asked = urlencode({"spanFilterCondition": FILTER, "selectedSpanNodeId": data["getSpanByOtelId"]["id"]})
    return f"{backend.http}/projects/{project}/spans/{trace_id}?{asked}"


if __name__ == "__main__":
    main(*sys.argv[1:])
