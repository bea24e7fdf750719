"""A small reference engine: AF_XDP and ESP in Python, for laboratories and machines without VPP."""
