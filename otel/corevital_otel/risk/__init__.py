"""Risk: from a sequence's features to a score, a level and factors.

- :mod:`corevital_otel.risk.levels`: levels, and the protocol of a basis on a table.
- :mod:`corevital_otel.risk.prior`, :mod:`~corevital_otel.risk.baseline`, :mod:`~corevital_otel.risk.calibrated`: the
  three bases. They need NumPy and pydantic at most.
- :mod:`corevital_otel.risk.table`: labelled or unlabelled runs as feature columns.

A profile is fitted and measured in :mod:`corevital_otel.calibration`.

NaN, Inf, loops and truncation are flags. No basis may add them to its score: scores would no longer be comparable
between requests, and would repeat what an alert already reports.
"""

from corevital_otel.report import RiskModel
from corevital_otel.risk.levels import MEDIUM, level
from corevital_otel.risk.prior import PriorRisk

__all__ = ["MEDIUM", "PriorRisk", "RiskModel", "level"]
