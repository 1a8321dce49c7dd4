"""From frames to reports: sequences, their windows, features, loops and health flags."""
