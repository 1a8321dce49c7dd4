"""What the doctor says of an engine that COREVITAL_ATTACH must name."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

import pytest

from corevital_otel.cli import engines

Install = Callable[[str | None], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Stand in for an environment without vLLM, and with this version of SGLang; None: without that too."""

    def installed(found: str | None) -> None:
        def version(name: str) -> str:
            if name == "sglang" and found is not None:
                return found
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(importlib.metadata, "version", version)

    return installed


@pytest.mark.parametrize(
    ("version", "status", "text"),
    [
        ("0.5.23", "ok", "sglang 0.5.23"),
        ("0.5.18", "fail", "sglang 0.5.18 is too old: install 0.5.19 or newer"),
        ("0.6.0", "warn", "sglang 0.6.0 was not tested, only 0.5.23; it may work"),
        ("0.6", "warn", "sglang 0.6 was not tested"),
    ],
)
def test_its_version_is_checked(install: Install, version: str, status: str, text: str) -> None:
    install(version)
    (engine,) = engines.attached()
    check = next(engines.of_attached(engine))
    assert (check.name, check.status, check.text[: len(text)]) == ("engine", status, text)


@pytest.mark.parametrize(("value", "status"), [("sglang", "ok"), ("", "warn"), ("tgi", "warn")])
def test_the_variable_is_checked(install: Install, monkeypatch: pytest.MonkeyPatch, value: str, status: str) -> None:
    install("0.5.23")
    monkeypatch.setenv("COREVITAL_ATTACH", value)
    _, entry_point, attach = engines.of_attached(engines.ATTACHED[0])
    assert entry_point.name == "entry point"
    assert (attach.name, attach.status) == ("attach", status)
    assert status == "ok" or "set COREVITAL_ATTACH=sglang" in attach.text


def test_without_such_an_engine_there_is_nothing_to_say(install: Install) -> None:
    install(None)
    assert list(engines.attached()) == []
