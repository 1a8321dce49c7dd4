"""Looks the private names of TGI that the adapter uses up in a checkout, or in our stand-in, without importing it."""

from __future__ import annotations

import ast
from pathlib import Path

from corevital.engines.tgi import names


def look(source: Path) -> tuple[int, list[str]]:
    """How many names were looked up in a checkout, and what is missing or has other parameters."""
    checked, lacking = 0, []
    package = source / "server" / names.PACKAGE
    for module, wanted in names.CALLS.items():
        found = _methods(_text(package / f"{module.replace('.', '/')}.py"))
        for name, parameters in wanted.items():
            checked += 1
            if found.get(name) != parameters:
                lacking.append(f"{module}: {name}{found.get(name, ' is not there')}")
    texts = {f"server/{names.PACKAGE}/{name.replace('.', '/')}.py": words for name, words in names.SPELLED.items()}
    for path, words in {**texts, "proto/v3/generate.proto": names.MESSAGES}.items():
        text = _text(source / path)
        checked += len(words)
        lacking += [f"{path}: {word}" for word in words if word not in text]
    return checked, lacking


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _methods(code: str) -> dict[str, tuple[str, ...]]:
    """The methods of a module's classes, and their parameters."""
    return {
        f"{owner.name}.{method.name}": tuple(argument.arg for argument in method.args.args)
        for owner in ast.parse(code).body
        if isinstance(owner, ast.ClassDef)
        for method in owner.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
    }
