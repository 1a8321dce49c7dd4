"""``python -m dashboards.source`` writes dashboards and rules from ``dashboards/config.toml``; ``--check`` compares."""

import sys
import warnings
from pathlib import Path

with warnings.catch_warnings():
    # The SDK would rather make Grafana's next format, which Grafana 11 does not read.
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="grafana_foundation_sdk")
    from dashboards.source import chart, fleet, frame, itself, model, requests, rules, runbooks
    from dashboards.source.config import CONFIG, load_kubernetes

FOLDER = Path(__file__).parents[1]


def main(arguments: list[str]) -> int:
    """Write or check; the number of files that differ is the exit status."""
    paths = {
        FOLDER / f"grafana/corevital-{part.__name__.rsplit('.', 1)[1]}.json": frame.as_json(part.dashboard())
        for part in (fleet, model, requests, itself, runbooks)
    }
    paths |= {FOLDER / "prometheus" / name: text for name, text in rules.files(CONFIG).items()}
    paths[FOLDER / "kubernetes/prometheusrule.yaml"] = rules.custom_resource(load_kubernetes())
    boards = {path.name: text for path, text in paths.items() if path.suffix == ".json"}
    of_chart = FOLDER / "kubernetes/chart/files"
    paths |= {of_chart / name: text for name, text in chart.files(FOLDER, boards, load_kubernetes()).items()}
    if arguments == ["--check"]:
        stale = [path for path, text in paths.items() if not path.exists() or path.read_text() != text]
        present = {*FOLDER.glob("grafana/*.json"), *FOLDER.glob("prometheus/*.rules.yml"), *of_chart.glob("**/*.*")}
        stale += sorted(present - set(paths))
        for path in stale:
            sys.stderr.write(f"{path.name} is not what dashboards/source makes: run python -m dashboards.source\n")
        return len(stale)
    for path, text in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
