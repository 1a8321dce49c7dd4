"""Fitting and evaluating a risk profile on labelled runs. Needs the extra ``corevital[calibrate]``."""
