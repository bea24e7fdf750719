"""Rates in bits per second as they are written in the file."""

from __future__ import annotations

import re

from ipsec_gw.config.problems import Refused

LOWEST, HIGHEST = 8_000, 400_000_000_000
_UNITS = {"": 1, "k": 1_000, "M": 1_000_000, "G": 1_000_000_000}
_RATE = re.compile(r"(\d{1,12})\s*([kMG]?)", re.ASCII)
_FORMS = 'write bits per second, or "64k", "10M", "1G"'


def rate_of(value: object) -> int:
    """``64000``, ``"64k"``, ``"10M"``, ``"1G"``, from 8 kbit/s to 400 Gbit/s. Raises Refused."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Refused(f"{value!r} is no rate", _FORMS)
    found = _RATE.fullmatch(str(value).strip())
    if found is None:
        raise Refused(f"{value!r} is no rate", _FORMS)
    rate = int(found[1]) * _UNITS[found[2]]
    if not LOWEST <= rate <= HIGHEST:
        raise Refused(f"{value} is out of range", 'write "8k" to "400G" bits per second')
    return rate


def rate_text(rate: int) -> str:
    """``10M``, the shortest that is exact."""
    for unit, size in reversed(_UNITS.items()):
        if rate % size == 0:
            return f"{rate // size}{unit}"
    return str(rate)
