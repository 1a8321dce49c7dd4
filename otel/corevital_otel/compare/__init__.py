"""Compares two samples of requests. The tests need scipy, which comes with ``corevital[calibrate]``."""
