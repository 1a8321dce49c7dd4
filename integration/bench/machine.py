"""The machine's description under every table, and the format of a median with its interval."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def processor() -> str:
    """The CPU's name and the number of its cores that this process may use."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} cores"


def versions(*packages: str) -> str:
    """Python's version, and those of these distributions where they are installed."""
    found = [f"Python {platform.python_version()}"]
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


def spread(values: Sequence[float]) -> str:
    """20th percentile, median and 80th percentile."""
    fifths = statistics.quantiles(values, n=5)
    return f"{fifths[0]:.3g} / {statistics.median(values):.3g} / {fifths[3]:.3g}"


def interval(values: Sequence[float]) -> tuple[float, float]:
    """What a sample of six or more leaves for the median at 95 %, by the binomial distribution."""
    ordered, last = sorted(values), len(values) - 1
    reach = math.ceil(last / 2 + 0.98 * len(ordered) ** 0.5)
    return ordered[max(last - reach, 0)], ordered[min(reach, last)]


def median_interval(values: Sequence[float], digits: str) -> str:
    """The median, and its :func:`interval`."""
    low, high = interval(values)
    return f"{statistics.median(values):{digits}} ({low:{digits}} to {high:{digits}})"


def quiet() -> None:
    """An environment for a quiet vLLM that makes no network requests."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
