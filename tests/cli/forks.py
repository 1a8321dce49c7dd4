"""Runs commands in forks of itself: a line of JSON each on standard input, the exit status on standard output."""

import importlib
import json
import os
import sys
from typing import Any

from corevital_otel.cli import main

for name in ("calibrate", "evaluate", "show", "spans", "watch", "terminal"):
    importlib.import_module(f"corevital_otel.cli.{name}")
importlib.import_module("corevital_otel.service.environment")


def child(call: dict[str, Any]) -> None:
    for number, name, flags, mode in (
        (0, "in", os.O_RDONLY, "r"),
        (1, "out", os.O_WRONLY, "w"),
        (2, "err", os.O_WRONLY, "w"),
    ):
        os.close(number)
        if call[name] is not None:
            opened = os.open(call[name], flags)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)
        stream = None if call[name] is None else open(number, mode, encoding=call["encoding"])  # noqa: SIM115
        setattr(sys, f"std{name}", stream)
    for name in list(os.environ):
        if name.startswith(("COREVITAL_", "OTEL_")):
            del os.environ[name]
    os.chdir(call["cwd"])
    sys.argv = ["corevital", *call["arguments"]]
    main()


for line in sys.stdin:
    process = os.fork()
    if process == 0:
        code = 99
        try:
            child(json.loads(line))
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else 98
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
        except BaseException:
            import traceback

            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
