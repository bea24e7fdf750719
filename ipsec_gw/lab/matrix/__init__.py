"""The matrix: swanctl configurations of ordinary life, and what becomes of every packet with each of them."""
