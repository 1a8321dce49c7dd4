"""What the Helm chart has of the other files: rules, dashboards, routes and the Collector's configuration."""

import json
import re
from pathlib import Path
from typing import Any, Final

import yaml
from dashboards.source.config import Config
from dashboards.source.rules import groups
from dashboards.source.rules.rule import as_yaml

_HEAD: Final = "# Made by `python -m dashboards.source`. "
_MATCHER: Final = re.compile(r'(?P<name>\w+) (?P<matchType>=~|!~|!=|=) "(?P<value>.*)"')
_CAMEL: Final = {"send_resolved": "sendResolved", "title_link": "titleLink"}


def files(folder: Path, dashboards: dict[str, str], config: Config) -> dict[str, str]:
    """The chart's files by their path in ``chart/files``.

    Args:
        folder: ``dashboards/``.
        dashboards: each dashboard's JSON, by its file's name.
        config: of Kubernetes.
    """
    every = [group for found in groups(config).values() for group in found]
    made = {"rules.yaml": as_yaml(every, config, f"{_HEAD}Their source is dashboards/config.toml.\n")}
    made["alertmanager.yaml"] = _dump(
        alertmanager(_load(folder / "alertmanager/alertmanager.yml")), "dashboards/alertmanager/alertmanager.yml"
    )
    both = [_load(folder / "collector" / name) for name in ("collector.yaml", "to-tempo.yaml")]
    made["collector.yaml"] = _dump(merged(*both), "dashboards/collector/collector.yaml and to-tempo.yaml")
    for name, text in dashboards.items():
        made[f"dashboards/{name}"] = json.dumps(json.loads(text), separators=(",", ":"), ensure_ascii=False) + "\n"
    return made


def alertmanager(routes: dict[str, Any]) -> dict[str, Any]:
    """What an AlertmanagerConfig takes over unchanged: grouping, inhibitions and the messages' texts.

    Args:
        routes: Alertmanager's own configuration.
    """
    (page,) = [receiver for receiver in routes["receivers"] if receiver["name"] == "page"]
    slack, pagerduty = dict(page["slack_configs"][0]), dict(page["pagerduty_configs"][0])
    del slack["channel"], pagerduty["routing_key_file"]
    details = [{"key": name, "value": text} for name, text in pagerduty.pop("details").items()]
    links = [{"alt": link["text"], "href": link["href"]} for link in pagerduty.pop("links")]
    return {
        "groupBy": routes["route"]["group_by"],
        "inhibitRules": [
            {
                "sourceMatch": [_matcher(text) for text in rule["source_matchers"]],
                "targetMatch": [_matcher(text) for text in rule["target_matchers"]],
                "equal": rule["equal"],
            }
            for rule in routes["inhibit_rules"]
        ],
        "slack": {_CAMEL.get(name, name): value for name, value in slack.items()},
        "pagerduty": {**pagerduty, "details": details, "pagerDutyLinkConfigs": links},
    }


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Two configurations as the Collector merges its files: maps are joined, all else is replaced."""
    made = dict(base)
    for name, value in over.items():
        known = made.get(name)
        made[name] = merged(known, value) if isinstance(known, dict) and isinstance(value, dict) else value
    return made


def _matcher(text: str) -> dict[str, str]:
    found = _MATCHER.fullmatch(text)
    if found is None:
        raise ValueError(f"alertmanager.yml has a matcher of another form: {text}")
    return found.groupdict()


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(path.read_text())
    return loaded


def _dump(made: dict[str, Any], source: str) -> str:
    text = yaml.dump(made, Dumper=_NoAliases, sort_keys=False, width=10_000, allow_unicode=True)
    return f"{_HEAD}Its source is {source}.\n{text}"


class _NoAliases(yaml.SafeDumper):  # type: ignore[misc]  # Any to mypy
    """Without anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
