"""YAML as Helm and kubectl write it."""

from collections.abc import Iterator
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # Any to mypy
    """A bare ``=`` is text, as Go's libraries have it."""


_Loader.add_constructor("tag:yaml.org,2002:value", _Loader.construct_yaml_str)


def documents(text: str) -> Iterator[dict[str, Any]]:
    """The documents of a stream that are not empty."""
    yield from filter(None, yaml.load_all(text, Loader=_Loader))
