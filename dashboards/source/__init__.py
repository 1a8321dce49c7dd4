"""What makes the Grafana dashboards beside this folder: queries apart from panels, panels apart from dashboards."""
