"""A small reference engine: AF_XDP and ESP in Python, for laboratories and machines without VPP."""

from ipsec_gw.engines.soft.drops import DropReason, Drops
from ipsec_gw.engines.soft.engine import SoftEngine

__all__ = ["DropReason", "Drops", "SoftEngine"]
