"""An OTLP receiver that fails on demand: slow, refusing, accepting in part, cutting connections. HTTP and gRPC, TLS.

What a real backend does is tested against real ones (Phoenix, rotel); they do not fail on demand.
"""

from __future__ import annotations

import contextlib
import datetime
import gzip
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord
from opentelemetry.proto.trace.v1.trace_pb2 import Span

Response = trace_service_pb2.ExportTraceServiceResponse


@dataclass
class Behaviour:
    """What the receiver does with a request.

    Attributes:
        status: HTTP status of the answer; only 200 accepts the spans.
        code: the same for gRPC.
        retry_after: header, or RetryInfo in seconds.
        rejected: spans that each answer reports as rejected.
        delay_s: before anything else.
        cut: close the connection without an answer and without accepting the spans.
    """

    status: int = 200
    code: grpc.StatusCode = grpc.StatusCode.OK
    retry_after: str | None = None
    rejected: int = 0
    delay_s: float = 0.0
    cut: bool = False


@dataclass
class Received:
    """What arrived: every request with its time, bytes and headers; and the accepted spans.

    A request that holds ``poison`` is refused as invalid, one above ``most_bytes`` as too large (over HTTP).
    Log records are kept apart, and their answers are set apart.
    """

    does: Behaviour = field(default_factory=Behaviour)
    times: list[float] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    spans: list[Span] = field(default_factory=list)
    endpoint: str = ""
    poison: bytes = b""
    most_bytes: int = 0
    logs: list[LogRecord] = field(default_factory=list)
    log_requests: list[dict[str, str]] = field(default_factory=list)
    does_with_logs: Behaviour = field(default_factory=Behaviour)

    def arrived(self, body: bytes, headers: dict[str, str]) -> Behaviour:
        self.times.append(time.monotonic())
        self.bodies.append(body)
        self.headers.append(headers)
        does = self.does
        time.sleep(does.delay_s)
        if self.poison and self.poison in body:
            return Behaviour(status=400, code=grpc.StatusCode.INVALID_ARGUMENT)
        if self.most_bytes and len(body) > self.most_bytes:
            return Behaviour(status=413)
        return does

    def take(self, request: trace_service_pb2.ExportTraceServiceRequest) -> Response:
        self.spans += [span for group in request.resource_spans for scope in group.scope_spans for span in scope.spans]
        response = Response()
        if self.does.rejected:
            response.partial_success.rejected_spans = self.does.rejected
            response.partial_success.error_message = "too old"
        return response

    def take_logs(self, request: logs_service_pb2.ExportLogsServiceRequest, headers: dict[str, str]) -> Behaviour:
        self.log_requests.append(headers)
        time.sleep(self.does_with_logs.delay_s)
        if self.does_with_logs.status == 200 and self.does_with_logs.code is grpc.StatusCode.OK:
            self.logs += [each for group in request.resource_logs for scope in group.scope_logs
                          for each in scope.log_records]  # fmt: skip
        return self.does_with_logs

    def log_answer(self) -> logs_service_pb2.ExportLogsServiceResponse:
        response = logs_service_pb2.ExportLogsServiceResponse()
        if self.does_with_logs.rejected:
            response.partial_success.rejected_log_records = self.does_with_logs.rejected
            response.partial_success.error_message = "too old"
        return response

    def wait_for(self, condition: Callable[[], bool], timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert condition()


@contextmanager
def http_receiver(tls: ssl.SSLContext | None = None) -> Iterator[Received]:
    received = Received()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path.endswith("/v1/logs"):
                does = received.take_logs(
                    logs_service_pb2.ExportLogsServiceRequest.FromString(body), dict(self.headers)
                )
                self.answer(does, received.log_answer().SerializeToString() if does.status == 200 else b"")
                return
            does = received.arrived(body, dict(self.headers))
            if does.cut:
                self.close_connection = True
                self.connection.close()
                return
            answer = b""
            if does.status == 200:
                request = trace_service_pb2.ExportTraceServiceRequest.FromString(body)
                answer = received.take(request).SerializeToString()
            self.answer(does, answer)

        def answer(self, does: Behaviour, answer: bytes) -> None:
            self.send_response(does.status)
            if does.retry_after is not None:
                self.send_header("Retry-After", does.retry_after)
            self.send_header("Content-Type", "application/x-protobuf")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: Any) -> None:
            pass

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # cut
                super().finish()

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: Any) -> None:
            pass  # a client that does not trust us, or a connection that we cut

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    received.endpoint = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def grpc_receiver(credentials: grpc.ServerCredentials | None = None) -> Iterator[Received]:
    received = Received()

    class Service(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Response:
            does = received.arrived(request.SerializeToString(), dict(context.invocation_metadata()))
            if does.code is not grpc.StatusCode.OK:
                if does.retry_after is not None:
                    from google.rpc.error_details_pb2 import RetryInfo

                    info = RetryInfo()
                    info.retry_delay.FromTimedelta(datetime.timedelta(seconds=float(does.retry_after)))
                    context.set_trailing_metadata([("google.rpc.retryinfo-bin", info.SerializeToString())])
                context.abort(does.code, "not now")
            return received.take(request)

    class Logs(logs_service_pb2_grpc.LogsServiceServicer):
        def Export(self, request: Any, context: Any) -> logs_service_pb2.ExportLogsServiceResponse:
            does = received.take_logs(request, dict(context.invocation_metadata()))
            if does.code is not grpc.StatusCode.OK:
                context.abort(does.code, "not now")
            return received.log_answer()

    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Service(), server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(Logs(), server)
    if credentials is None:
        port = server.add_insecure_port("127.0.0.1:0")
    else:
        port = server.add_secure_port("127.0.0.1:0", credentials)
    received.endpoint = f"http{'s' if credentials else ''}://127.0.0.1:{port}"
    server.start()
    try:
        yield received
    finally:
        server.stop(0.2).wait()


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for 127.0.0.1 and its key, as PEM files."""

    certificate: Path
    key: Path

    def server(self, clients: Certificate | None = None) -> ssl.SSLContext:
        """TLS for a server; with ``clients`` it accepts only that client."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        if clients is not None:
            context.load_verify_locations(clients.certificate)
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def certificate(folder: Path, name: str) -> Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    files = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    files.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    files.key.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return files


@contextmanager
def raw_server(talk: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> Iterator[str]:
    """A server that runs ``talk`` for each connection, each in its thread. Yields its endpoint."""
    listener = socket.create_server(("127.0.0.1", 0))
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            try:
                taken, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(taken,), daemon=True).start()

    def one(taken: socket.socket) -> None:
        with contextlib.suppress(OSError), taken:
            taken.settimeout(30)
            if tls is None:
                talk(taken)
                return
            with tls.wrap_socket(taken, server_side=True) as wrapped:
                talk(wrapped)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        ended.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def read_request(taken: socket.socket) -> bytes:
    """The body of one HTTP request; empty where the client closes."""
    data = b""
    while b"\r\n\r\n" not in data:
        if not (more := taken.recv(65_536)):
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [line.partition(b":")[2] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    while len(body) < int(lengths[0]):
        if not (more := taken.recv(65_536)):
            return b""
        body += more
    return body
