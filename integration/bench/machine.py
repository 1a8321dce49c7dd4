"""What every table says of the machine it was measured on, and how its spread is written."""

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


def median_interval(values: Sequence[float], digits: str) -> str:
    """The median, and the interval that a sample of six or more leaves for it at 95 %, by the binomial distribution."""
    ordered, last = sorted(values), len(values) - 1
    reach = math.ceil(last / 2 + 0.98 * len(ordered) ** 0.5)
    likely = f"{ordered[max(last - reach, 0)]:{digits}} to {ordered[min(reach, last)]:{digits}}"
    return f"{statistics.median(ordered):{digits}} ({likely})"


def quiet() -> None:
    """An environment for vLLM in which it says little and asks nobody."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
