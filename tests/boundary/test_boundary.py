"""The telemetry half works where there is neither torch nor an engine."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"torch", "vllm", "numba", "triton", "transformers"}:
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
import corevital_otel
names = [module.name for module in pkgutil.walk_packages(corevital_otel.__path__, "corevital_otel.")]
names = [name for name in names if not name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
import corevital.kernels, corevital.frames.transport
print(len(names))
"""


def test_every_module_imports_without_torch_and_engine() -> None:
    done = subprocess.run([sys.executable, "-W", "error", "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
