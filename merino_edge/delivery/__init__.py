"""Delivery from the workstation: keys, the packed file and its wheels, and the ways onto a board."""
