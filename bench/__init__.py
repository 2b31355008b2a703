"""Measurements, each beside its floor in the same run. `make bench` runs all and prints a table."""
