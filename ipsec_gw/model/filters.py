"""Filters and policers: what is done with packets one by one, whatever their sessions say."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique

from ipsec_gw.model.firewall import ANY_SERVICE, Service
from ipsec_gw.model.ids import IpNetwork


@unique
class FilterAction(StrEnum):
    """What a term does with its packets. ``reject`` answers as a policy does."""

    ACCEPT = "accept"
    DISCARD = "discard"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class FilterTerm:
    """One term; all that it asks for must hold. ``name`` is ``filter/term``.

    Empty ``sources``, ``destinations`` and ``dscp`` mean any; codepoints are 0 to 63. Of the TCP flags all bits of
    ``flags_set`` are set and none of ``flags_clear``; with one of them it matches TCP alone. ``fragment``: parts of
    datagrams, the first included, or (False) whole ones. Later fragments have no ports, types and flags. A packet that
    is accepted gets the codepoint ``mark``. ``policer`` names one. ``log``: its packets are told of. ``mirror``:
    an interface that copies of them are sent out by, as they arrived.
    """

    name: str
    filter: str
    action: FilterAction = FilterAction.ACCEPT
    sources: tuple[IpNetwork, ...] = ()
    destinations: tuple[IpNetwork, ...] = ()
    services: tuple[Service, ...] = ANY_SERVICE
    dscp: frozenset[int] = frozenset()
    flags_set: int = 0
    flags_clear: int = 0
    fragment: bool | None = None
    policer: str | None = None
    mark: int | None = None
    log: bool = False
    mirror: str | None = None


@dataclass(frozen=True, slots=True)
class Filter:
    """A list of terms, and where it looks: at what comes in by the interfaces ``input``, at what goes out by those of
    ``output``, and with ``host`` at what is for this machine. The first term that matches decides; what matches none
    is accepted.
    """

    name: str
    input: tuple[str, ...] = ()
    output: tuple[str, ...] = ()
    host: bool = False


@unique
class Colour(StrEnum):
    """What becomes of a packet that is not green, unless it gets another DSCP."""

    ACCEPT = "accept"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class Policer:
    """Token buckets for all packets of all terms that name it, over all CPUs. Rates are bits of IP per second, bursts
    bytes.

    With ``excess_burst`` it is a single rate three colour marker (RFC 2697), with ``peak_rate`` and ``peak_burst`` a
    two rate three colour marker (RFC 2698), else there is no yellow. ``yellow`` and ``red`` say what becomes of such
    packets; a number is a DSCP. ``aware``: packets of assured forwarding (RFC 2597) have their colour already.
    """

    name: str
    rate: int
    burst: int
    excess_burst: int | None = None
    peak_rate: int | None = None
    peak_burst: int | None = None
    yellow: Colour | int = Colour.ACCEPT
    red: Colour | int = Colour.DISCARD
    aware: bool = False

    @property
    def three_colours(self) -> bool:
        """Is there a yellow?"""
        return self.excess_burst is not None or self.peak_rate is not None
