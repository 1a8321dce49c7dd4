"""Draws Grafana's dashboards from their JSON and from what a real Prometheus answered to their queries.

Not Grafana: what a panel's type, options, field settings, overrides, mappings, thresholds and transformations say is
applied as Grafana's documentation describes it, for the types that our dashboards use. Anything else is an error.
"""
