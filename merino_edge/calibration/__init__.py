"""Fits the coefficients of a board's profile to its probe.json; profile of this machine."""
