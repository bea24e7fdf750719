"""Why a packet left the pipeline or the guard: one numbered list for C, Python, metrics and logs.

The list is append-only: a number keeps its meaning for ever, a retired one stays as ``UNUSED_n``.
C gets it as text before the compile (:func:`c_defines`).
"""

from __future__ import annotations

from enum import IntEnum, unique

MAX_REASONS = 128
"""Entries of the counter map: room to grow without another map layout."""


@unique
class Reason(IntEnum):
    """A verdict of XDP on ESP (1 to 23, none of them drops), of TC on packets of XFRM interfaces (24 to 31), of the
    guard on TC egress (32 to 39), or of the firewall in XDP (40 to 79 and 112 to 119), on TC egress (80 to 89), by
    screens in XDP (90 to 111) or by filters there (122 and above).
    """

    STEERED = 1
    """ESP of a steered SA, handed to its interface's dock."""
    NOT_IP = 2
    """No IPv4 or IPv6 under at most one VLAN tag (ARP, LLDP, QinQ): kernel."""
    TRUNCATED = 3
    """Too short or malformed for what it claims to be: kernel, which has counters of its own for it."""
    NOT_ESP = 4
    """Another protocol or port: kernel."""
    FRAGMENT = 5
    """An outer fragment, the first or a later one: kernel."""
    IKE = 6
    """UDP 500: charon."""
    IKE_NAT_T = 7
    """NAT-T with the non-ESP marker (RFC 3948 §2.2): charon."""
    KEEPALIVE = 8
    """NAT-T with the single octet 0xff (RFC 3948 §2.3): kernel."""
    UNKNOWN_SPI = 9
    """ESP of an SA that is not steered: kernel."""
    KERNEL_OWNED = 10
    """ESP of an SA whose steer entry says kernel."""
    ENGINE_OFF = 11
    """ESP of a steered SA while the engine flag is off: kernel."""
    NO_DOCK = 12
    """ESP of a steered SA that came in by an interface without a way to its dock: kernel. Expect 0."""
    TAGGED = 13
    """ESP of a steered SA inside a VLAN tag, which engines do not know: kernel."""
    IP_OPTIONS = 14
    """ESP of a steered SA behind IPv4 options: kernel."""
    IP6_EXTENSIONS = 15
    """ESP of a steered SA behind IPv6 extension headers: kernel."""
    ENCAPSULATION = 16
    """Bare ESP of a steered SA that is encapsulated in UDP, or the other way round: kernel, which drops it."""
    MOVED = 17
    """ESP in UDP of a steered SA from another address or port, which the kernel is to tell charon: kernel."""

    XFRMI_OUT = 24
    """Plaintext that leaves by an XFRM interface, handed to the engine (TC egress)."""
    XFRMI_IN = 25
    """Decrypted by the engine, comes in by its XFRM interface (TC ingress)."""
    XFRMI_BACK = 26
    """Plaintext that found no socket of the engine, back on its way out of the XFRM interface: kernel."""
    XFRMI_UNKNOWN = 27
    """A VLAN tag on the veth pair that is no XFRM interface's: dropped. Expect 0."""
    XFRMI_PASSED = 28
    """Behind the tag of an XFRM interface, which the firewall looks at where it comes in by that one (XDP): kernel."""
    XFRMI_VERSION = 29
    """Of an IP version that the tunnel of the XFRM interface has no selectors for (TC): dropped."""
    XFRMI_LEFT = 30
    """A frame of a VXLAN device that is too long for the tunnel, or has a VLAN tag (TC egress): kernel."""

    GUARD_ENGINE = 32
    """The kernel sent ESP of an SA whose numbers the engine owns: dropped."""
    GUARD_KERNEL = 33
    """The kernel sent ESP of an SA that it owns: passed."""
    GUARD_HELD = 34
    """The kernel sent ESP of an SA that nobody decided on yet: dropped while the hold lasts."""
    GUARD_NEWBORN = 35
    """The same after the hold, or with no daemon alive: passed."""
    GUARD_FULL = 36
    """The same with no room to remember it: passed. Expect 0."""
    GUARD_TRANSIT = 37
    """ESP between others that this machine only forwards: passed, and nothing is remembered of it."""

    GUARD_TAKEN_OVER = 38
    """The kernel sent ESP of an SA whose engine is gone: passed."""

    FORWARDED = 40
    """Redirected to another interface."""
    TO_KERNEL = 41
    """Permitted and translated, the kernel forwards it: no neighbour yet, fragmentation, an interface that cannot be
    redirected to, or a checksum that is left to hardware."""
    HOST = 42
    """To this machine, permitted."""
    HOST_IKE = 43
    """IKE, ESP or AH to this machine: never stopped."""
    NDP = 44
    """IPv6 neighbour or router discovery with hop limit 255: kernel."""
    LOCAL_FRAGMENT = 45
    """A later fragment to this machine: the kernel puts it together with a first one that was let in, or not at all."""
    NO_ZONE = 46
    """Came in by an interface or VLAN without a zone: dropped."""
    MALFORMED = 47
    """Headers that contradict themselves or end early: dropped."""
    FRAGMENT_UNKNOWN = 48
    """A later fragment whose first one was not let through: dropped."""
    TCP_NOT_SYN = 49
    """TCP without a session that is no SYN: dropped or reset."""
    ICMP_UNSOLICITED = 50
    """ICMP that answers nothing: dropped."""
    ICMP_NO_SESSION = 51
    """An ICMP error about a packet of no session: dropped."""
    ROUTE_BLACKHOLE = 52
    """A blackhole route: dropped."""
    ROUTE_UNREACHABLE = 53
    """An unreachable or prohibit route: dropped and answered."""
    ROUTE_UNSUPPORTED = 54
    """Forwarding is off on the interface, or a kind of route that XDP cannot follow: dropped."""
    NO_EGRESS_ZONE = 55
    """The route leads to an interface without a zone: dropped."""
    POLICY_DENY = 56
    """Denied by a rule."""
    POLICY_REJECT = 57
    """Rejected by a rule: dropped and answered."""
    DEFAULT_DENY = 58
    """No rule matched and the default is not to permit: dropped (answered if the default is to reject)."""
    NAT_EXHAUSTED = 59
    """No free port, or the translated flow exists already: dropped."""
    NAT_NO_ADDRESS = 60
    """Interface NAT, and the interface has no address of that family: dropped."""
    SESSIONS_FULL = 61
    """The session table is full: dropped."""
    SESSION_CLOSED = 62
    """TCP after a RST: dropped."""
    TTL_EXPIRED = 63
    """Dropped and answered with time exceeded."""
    TOO_BIG = 64
    """Longer than the next hop's MTU and not to be fragmented: dropped and answered."""
    ZONE_CHANGED = 65
    """A session whose route now leads into another zone: dropped."""
    NO_STAGE = 66
    """A stage of the pipeline is missing: dropped. Expect 0."""

    HOST_SOCKET = 67
    """From a tunnel, the answer to a connection of this machine that the kernel sends encrypted: passed."""
    CLEAR_OF_PROTECTED = 68
    """Not out of a tunnel, though an IPsec policy protects it: dropped (RFC 4301 5.2)."""
    DECRYPTED = 69
    """Decrypted by the kernel and led into the pipeline, where another verdict follows."""
    TUNNEL_SELECTOR = 70
    """Decrypted by an SA that its IPsec policy does not name, or without a policy: dropped (RFC 4301 5.2)."""

    MARTIAN_SOURCE = 71
    """A new flow from a multicast, broadcast, loopback or unspecified address: dropped (RFC 1812 5.3.7)."""

    NPTV6_UNMAPPABLE = 72
    """NPTv6 cannot translate an address whose subnet or interface identifier has all bits set: dropped and answered."""

    NAT64_ADDRESS = 73
    """An address that NAT64 may not translate: this machine's, none of one host, one that the prefix is not for, or a
    source behind the prefix or of a link: dropped."""
    NAT64_PROTOCOL = 74
    """Neither TCP, UDP nor echo, or an ICMP error that has no counterpart in the other family: dropped."""
    NAT64_FRAGMENT = 75
    """ICMP in fragments, whose checksum cannot be translated: dropped (RFC 7915 1.2)."""
    NAT64_CHECKSUM = 76
    """UDP over IPv4 without a checksum in fragments or too long to be summed: dropped (RFC 7915 4.5)."""
    NAT64_SOURCE_ROUTE = 77
    """A source route that is not at its end: dropped and answered (RFC 7915 4.1, 5.1)."""

    TUNNEL_NAT = 78
    """Source NAT and the IPsec policies disagree: it is protected and would leave in clear as what it becomes, or would
    be protected by a tunnel whose policies were not asked: dropped."""

    TRANSLATE = 79
    """Handed to VPP's NAT; when it comes back, another verdict follows."""

    EGRESS_SESSION = 80
    """Sent by the kernel in a session: passed."""
    EGRESS_NEW = 81
    """The first packet of a session of this machine: passed."""
    EGRESS_EXEMPT = 82
    """IKE, ESP, neighbour discovery, multicast or ICMP of this machine: passed."""
    EGRESS_UNPOLICED = 83
    """Forwarded by the kernel without a session: dropped."""
    EGRESS_DENY = 84
    """From this machine and denied by a rule: dropped."""
    EGRESS_FULL = 85
    """From this machine with no room for its session: dropped."""
    EGRESS_FILTER = 86
    """A term of an output filter discards it."""
    EGRESS_POLICED = 87
    """Beyond the rate of a policer of an output filter: dropped."""

    EGRESS_TURNED = 88
    """An ICMP error of this machine about what was translated into a tunnel: led into the pipeline, where another
    verdict follows."""

    SCREEN_LAND = 90
    """The same address as source and destination: dropped by a screen."""
    SCREEN_SYN_FIN = 91
    """TCP with SYN and FIN: dropped by a screen."""
    SCREEN_NO_FLAG = 92
    """TCP without any flag: dropped by a screen."""
    SCREEN_FIN_NO_ACK = 93
    """TCP with FIN and without ACK: dropped by a screen."""
    SCREEN_WINNUKE = 94
    """TCP with URG to port 139: dropped by a screen."""
    SCREEN_SYN_FRAGMENT = 95
    """The first fragment of a TCP SYN: dropped by a screen."""
    SCREEN_TEAR_DROP = 96
    """An IPv4 fragment behind the first with less than 8 bytes: dropped by a screen."""
    SCREEN_SOURCE_ROUTE = 97
    """IPv4 options, or an IPv6 routing header of type 0: dropped by a screen."""
    SCREEN_PING_OF_DEATH = 98
    """An IPv4 fragment that reaches beyond 65,535 bytes: dropped by a screen."""
    SCREEN_SYN_FLOOD = 99
    """More TCP SYNs from its zone than allowed in a window: dropped by a screen."""
    SCREEN_ICMP_FLOOD = 100
    """More ICMP packets from its zone than allowed in a window: dropped by a screen."""
    SCREEN_UDP_FLOOD = 101
    """More UDP packets from its zone than allowed in a window: dropped by a screen."""
    SCREEN_SYN_SOURCE = 102
    """More TCP SYNs from its source than allowed in a window: dropped by a screen."""
    SCREEN_SYN_DESTINATION = 103
    """More TCP SYNs to its destination than allowed in a window: dropped by a screen."""
    SCREEN_PORT_SCAN = 104
    """A TCP SYN of a source that has asked for too many ports in a window: dropped by a screen."""
    SCREEN_IP_SWEEP = 105
    """A new flow of a source that has asked for too many destinations in a window: dropped by a screen."""
    SCREEN_SESSIONS_SOURCE = 106
    """Its source has too many sessions: dropped by a screen."""
    SCREEN_SESSIONS_DESTINATION = 107
    """Its destination has too many sessions: dropped by a screen."""
    SCREEN_SYN_COOKIE = 108
    """More TCP SYNs from its zone than allowed in a window: answered with a cookie."""
    SCREEN_COOKIE_VALID = 109
    """A TCP ACK with a cookie: its source is believed from then on, and the connection is reset."""

    TRANSLATOR_AWAY = 112
    """Of a flow that VPP's NAT translates, or to an address of VPP's, while VPP is away: dropped."""
    TRANSLATOR_UNFIT = 113
    """The same with IPv4 options, which VPP would act upon itself: dropped."""
    TRANSLATOR_UNKNOWN = 114
    """Came back from VPP's NAT and belongs to no session or pool: dropped."""
    TRANSLATOR_PASSED = 115
    """Of a flow that VPP's NAT translates, with the addresses from before, and not from VPP: dropped."""

    FILTER_DISCARD = 122
    """A term of an input filter or of the host filter discards it."""
    FILTER_REJECT = 123
    """A term of an input filter or of the host filter rejects it: dropped and answered."""
    FILTER_POLICED = 124
    """Beyond the rate of a policer of an input filter or of the host filter: dropped."""

    @property
    def label(self) -> str:
        """For metrics and tables: ``unknown-spi``."""
        return self.name.lower().replace("_", "-")


def c_defines() -> str:
    """The list as C preprocessor lines: ``#define REASON_IKE 6``."""
    lines = [f"#define REASON_{reason.name} {reason.value}" for reason in Reason]
    return "\n".join([*lines, f"#define MAX_REASONS {MAX_REASONS}", ""])
