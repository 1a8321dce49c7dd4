"""A stand-in for vLLM behind its Rust frontend. Ends on SIGTERM.

It has /health and /metrics on port 8000, and an engine core that hands the hub one request before it is healthy.
"""

import http.server
import signal
import sys
import threading
import time

from corevital.frames.lifecycle import Admitted, Finished
from corevital.frames.remote_hub import RemoteHub

PORT = 8000


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"vllm:num_requests_running 0\n" if self.path == "/metrics" else b""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    print("arguments:", *sys.argv[1:], flush=True)
    core = RemoteHub()
    now = time.time_ns()
    told = Admitted(
        request_id="r", engine_id="e", sequence=0, operation="chat", model="m", arrival_ns=now, prompt_tokens=1
    )
    stamp = core.admit(told)
    assert stamp is not None
    core.finish(stamp.key, Finished(reason="stop", token_ids=(), end_ns=now))
    assert core.drain(30)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", PORT), Page)
    signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
    server.serve_forever()
    core.close()


if __name__ == "__main__":
    main()
