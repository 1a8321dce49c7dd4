"""The app of SGLang's tokenizer workers, where there are several: SGLang's own, in a process that has loaded plugins.

SGLang loads no plugin in those processes. Its setting ``SGLANG_HTTP_SERVER_APP_PATH`` names the app that they load, and
is this module unless the user has set it.
"""

from sglang.srt.entrypoints.http_server import app
from sglang.srt.plugins import load_plugins

__all__ = ["app"]

load_plugins()
