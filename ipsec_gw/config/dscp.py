"""Differentiated services codepoints as they are written in the file (RFC 2474, 2597, 3246, 8622)."""

from __future__ import annotations

from ipsec_gw.config.problems import Refused

CODEPOINTS = {
    "be": 0,
    "le": 1,
    **{f"cs{number}": 8 * number for number in range(8)},
    **{f"af{group}{drop}": 8 * group + 2 * drop for group in range(1, 5) for drop in range(1, 4)},
    "va": 44,
    "ef": 46,
}
_NAMES = {number: name for name, number in reversed(CODEPOINTS.items())}
HIGHEST = 63


def codepoint_of(value: object) -> int:
    """A name or a number from 0 to 63. Raises Refused."""
    if isinstance(value, int) and not isinstance(value, bool):
        if 0 <= value <= HIGHEST:
            return value
        raise Refused(f"{value} is no DSCP", f"write a number from 0 to {HIGHEST}")
    if isinstance(value, str) and value in CODEPOINTS:
        return CODEPOINTS[value]
    raise Refused(f"{value!r} is no DSCP", f"write a number from 0 to {HIGHEST}, or one of {', '.join(CODEPOINTS)}")


def codepoint_text(number: int) -> str:
    """``ef``, ``af11``, ``5``."""
    return _NAMES.get(number, str(number))
