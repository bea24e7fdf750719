"""Names of zones, addresses, applications, schedules, pools and rules."""

from __future__ import annotations

import re

from ipsec_gw.config.literals import is_literal
from ipsec_gw.config.problems import Refused
from ipsec_gw.config.services import PREDEFINED
from ipsec_gw.model.firewall import SELF

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}")


def check_name(name: str) -> None:
    """Raises Refused for a name that cannot be shown, counted and typed everywhere."""
    if not _NAME.fullmatch(name):
        way_out = "write 1 to 63 letters, digits, _, . and -, the first a letter, a digit or _"
        raise Refused(f"{name!r} is no name", way_out)


def check_zone_name(name: str) -> None:
    """Zones: ``self`` is this machine, ``any`` would read like all of them."""
    check_name(name)
    if name == SELF:
        raise Refused("self is reserved: it is this machine", "choose another name")
    if name == "any":
        raise Refused("any is reserved", "choose another name")


def check_address_name(name: str) -> None:
    """Addresses: not what could be written in the place of a name."""
    check_name(name)
    if name == "any" or is_literal(name):
        raise Refused(f"{name} means something as it is", "choose a name that is no address")


def check_application_name(name: str) -> None:
    """Applications: predefined ones stay what they are."""
    check_name(name)
    if name in PREDEFINED:
        raise Refused(f"{name} is predefined", "choose another name")
