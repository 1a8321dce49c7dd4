"""How the shipped prior fares on a table of labelled runs: AUROC against the column `risk_score`, and its levels.

    python integration/bench/prior_risk.py TABLE.csv

The table has the columns of CoreVital's published ones (entropies and surprisals in bits, one row a run). Runs with
`format_failure` are left out: their answers are truncated, which is a flag and not a risk.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from corevital.frames.lifecycle import Admitted
from corevital_otel.report import Features, Health
from corevital_otel.risk import PriorRisk

ADMITTED = Admitted(
    request_id="r", engine_id="r", sequence=0, operation="chat", model="m", arrival_ns=0, prompt_tokens=1
)


def auroc(scores: list[float], failed: list[bool]) -> float:
    """Probability that a failed run scores above one that did not; ties count half."""
    score, label = np.array(scores), np.array(failed)
    bad, good = score[label][:, None], score[~label][None]
    return float((bad > good).mean() + (bad == good).mean() / 2)


def features(run: dict[str, str]) -> Features:
    tokens = int(run["generated_tokens"])
    mean, surprisal = float(run["entropy_mean"]), float(run["surprisal_mean"])
    return Features(
        tokens=tokens,
        entropy_mean=mean,
        entropy_sum=mean * tokens,
        entropy_max=float(run["entropy_max"]),
        entropy_std=float(run["entropy_std"]),
        surprisal_mean=surprisal,
        surprisal_sum=surprisal * tokens,
    )


def main() -> None:
    with Path(sys.argv[1]).open() as file:
        runs = [run for run in csv.DictReader(file) if run["format_failure"] != "True"]
    failed = [run["correct"] != "True" for run in runs]
    risks = [PriorRisk(0.7).assess(features(run), Health(), ADMITTED) for run in runs]
    levels = Counter(risk.level for risk in risks)
    print(f"{len(runs)} runs, {sum(failed)} failed")
    print(f"AUROC prior {auroc([risk.score or 0.0 for risk in risks], failed):.3f}")
    print(f"AUROC table's risk_score {auroc([float(run['risk_score']) for run in runs], failed):.3f}")
    print("levels " + ", ".join(f"{level} {count / len(runs):.1%}" for level, count in sorted(levels.items())))


if __name__ == "__main__":
    main()
