"""Exit status 0 if the hub in this container is healthy: asks the port that ``COREVITAL_HTTP`` names."""

import os
import sys
import urllib.request

address = os.environ.get("COREVITAL_HTTP") or "127.0.0.1:9464"
if address == "none":
    sys.exit("no health: COREVITAL_HTTP=none; set it to HOST:PORT")
address = address.replace("0.0.0.0:", "127.0.0.1:").replace("[::]:", "[::1]:")
try:
    with urllib.request.urlopen(f"http://{address}/health", timeout=4) as answer:
        answer.read()
except OSError as error:  # a status of 4xx and 5xx too
    sys.exit(f"not healthy: {error}")
