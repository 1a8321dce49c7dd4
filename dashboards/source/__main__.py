"""``python -m dashboards.source`` writes dashboards and rules from ``dashboards/config.toml``; ``--check`` compares."""

import sys
from pathlib import Path

from dashboards.source import boards, chart, rules
from dashboards.source.config import CONFIG, load_kubernetes
from dashboards.source.written import write_or_check

FOLDER = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    """Write or check; the number of files that differ is the exit status."""
    kubernetes = load_kubernetes()
    paths = {FOLDER / "grafana" / name: text for name, text in boards.files().items()}
    paths |= {FOLDER / "prometheus" / name: text for name, text in rules.files(CONFIG).items()}
    paths[FOLDER / "kubernetes/prometheusrule.yaml"] = rules.custom_resource(kubernetes)
    of_chart = FOLDER / "kubernetes/chart/files"
    for_chart = chart.files(FOLDER, boards.files_for_kubernetes(), kubernetes)
    paths |= {of_chart / name: text for name, text in for_chart.items()}
    present = {*FOLDER.glob("grafana/*.json"), *FOLDER.glob("prometheus/*.rules.yml"), *of_chart.glob("**/*.*")}
    return write_or_check(paths, present, arguments, "dashboards/source makes: run python -m dashboards.source")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
