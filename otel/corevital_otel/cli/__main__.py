"""``python -m corevital_otel.cli``."""

from corevital_otel.cli import main

main()
