"""Lets SGLang be imported on a machine without CUDA: modules that only its CUDA wheels have are empty stand-ins.

For tests only; :mod:`integration.harness.sglang_server` puts this folder on ``PYTHONPATH``. None of what a test calls
is in these modules: with the backends that the tests choose SGLang computes with PyTorch.
"""

import importlib.abc
import importlib.machinery
import sys
import types

MISSING = ("av", "decord", "deep_gemm", "flashinfer", "sgl_kernel", "timm", "torchvision")


class _Name(type):
    """A class that has every attribute."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _Module(types.ModuleType):
    """A module that has every name: a class that can be made and called."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        members = {"__init__": lambda self, *args, **kwargs: None, "__call__": lambda self, *args, **kwargs: None}
        made = _Name(name, (), members)
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] not in MISSING or _asks_transformers():
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return _Module(spec.name)

    def exec_module(self, module):
        pass


def _asks_transformers():
    """Whether transformers asks if there is such a module: it would use it."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.endswith("transformers/utils/import_utils.py"):
            return True
        frame = frame.f_back
    return False


sys.meta_path.append(_Finder())
