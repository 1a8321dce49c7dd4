"""OTLP: where spans and metrics go, how they are encoded, sent and retried, and what an answer means."""
