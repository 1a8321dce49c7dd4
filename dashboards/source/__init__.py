"""Generates rules and Grafana dashboards from ``dashboards/config.toml``; queries, panels and rules are separate."""
