"""dashboards/datadog in the Datadog Agent's own check: ``make check-datadog``."""
