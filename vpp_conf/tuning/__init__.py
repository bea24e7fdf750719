"""Measure crypto engines on this machine, choose, and keep the choice for the plan of VPP's start."""
