"""The applications that need no definition, as IANA and the RFCs have them."""

from __future__ import annotations

from ipsec_gw.config.ports import ICMP, ICMP6, PROTOCOLS, TCP, UDP
from ipsec_gw.model.firewall import ANY_SERVICE, Range, Service

ANY = "any"


def icmp(number: int, first: int, last: int | None = None) -> Service:
    """ICMP or ICMPv6 of the types ``first`` to ``last`` with every code."""
    return Service(number, (first << 8, (first if last is None else last) << 8 | 255))


def _ports(number: int, *ports: int | Range) -> tuple[Service, ...]:
    spans = (port if isinstance(port, tuple) else (port, port) for port in ports)
    return tuple(Service(number, span) for span in spans)


def _tcp(*ports: int | Range) -> tuple[Service, ...]:
    return _ports(TCP, *ports)


def _udp(*ports: int | Range) -> tuple[Service, ...]:
    return _ports(UDP, *ports)


def _protocols(*names: str) -> tuple[Service, ...]:
    return tuple(Service(PROTOCOLS[name]) for name in names)


PREDEFINED: dict[str, tuple[Service, ...]] = {
    ANY: ANY_SERVICE,
    "tcp-any": _protocols("tcp"),
    "udp-any": _protocols("udp"),
    "icmp-all": _protocols("icmp", "icmpv6"),
    "ping": (icmp(ICMP, 8), icmp(ICMP6, 128)),
    "router-discovery": (icmp(ICMP, 9, 10), icmp(ICMP6, 133, 134)),
    "ah": _protocols("ah"),
    "bfd": _udp((3784, 3785), 4784),
    "bgp": _tcp(179),
    "dhcp": _udp((67, 68)),
    "dhcpv6": _udp((546, 547)),
    "dns": (*_udp(53), *_tcp(53)),
    "dns-tls": _tcp(853),
    "esp": _protocols("esp"),
    "ftp": _tcp(21),
    "gre": _protocols("gre"),
    "http": _tcp(80),
    "https": _tcp(443),
    "igmp": _protocols("igmp"),
    "ike": _udp(500, 4500),
    "imap": _tcp(143),
    "imaps": _tcp(993),
    "ipip": _protocols("ipip"),
    "kerberos": (*_udp(88), *_tcp(88)),
    "ldap": _tcp(389),
    "ldaps": _tcp(636),
    "mysql": _tcp(3306),
    "netconf": _tcp(830),
    "nfs": (*_tcp(2049), *_udp(2049)),
    "ntp": _udp(123),
    "ospf": _protocols("ospf"),
    "pim": _protocols("pim"),
    "pop3": _tcp(110),
    "pop3s": _tcp(995),
    "postgresql": _tcp(5432),
    "quic": _udp(443),
    "radius": _udp((1812, 1813)),
    "rdp": (*_tcp(3389), *_udp(3389)),
    "sctp-any": _protocols("sctp"),
    "sip": (*_udp(5060), *_tcp((5060, 5061))),
    "smb": _tcp(445),
    "smtp": _tcp(25),
    "snmp": _udp(161),
    "snmp-trap": _udp(162),
    "ssh": _tcp(22),
    "submission": _tcp(465, 587),
    "syslog": _udp(514),
    "syslog-tls": _tcp(6514),
    "tacacs": _tcp(49),
    "telnet": _tcp(23),
    "tftp": _udp(69),
    "traceroute": _udp((33434, 33523)),
    "vrrp": _protocols("vrrp"),
    "wireguard": _udp(51820),
}
