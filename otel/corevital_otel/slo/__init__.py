"""Service level objectives over the store: which there are, and how much of their error budget is used."""
