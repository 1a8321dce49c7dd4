"""The statements of docs/operate/clickhouse.md on spans that were really exported: ``make check-clickhouse``."""
