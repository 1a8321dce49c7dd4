"""Risk: from a sequence's features to a number, a level, and the reasons for it.

- :mod:`corevital_otel.risk.model`: what a basis has to do, and levels.
- :mod:`corevital_otel.risk.prior`, :mod:`~corevital_otel.risk.baseline`, :mod:`~corevital_otel.risk.profile`: the three
  bases. Serving needs nothing else, and of libraries NumPy.
- :mod:`corevital_otel.risk.table`: labelled or unlabelled runs as feature columns.
- :mod:`corevital_otel.risk.fitting`, :mod:`~corevital_otel.risk.evaluation`: how a profile is made and measured. They
  need the extra ``corevital[calibrate]``.

Faults (NaN, Inf, loops, truncation) are flags of their own; no basis may add them to its score, or the score stops
being comparable between requests and says twice what an alert already says.
"""

from corevital_otel.risk.model import MEDIUM, RiskModel, level
from corevital_otel.risk.prior import PriorRisk

__all__ = ["MEDIUM", "PriorRisk", "RiskModel", "level"]
