"""All configurations of the matrix. Pure."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.matrix.case import Act, Carrier, Case, Child, Connection
from ipsec_gw.lab.matrix.ends import End
from ipsec_gw.lab.matrix.probes import Probe, Protocol
from ipsec_gw.lab.topology import Role

_A, _B = (Role.GATEWAY_A,), (Role.GATEWAY_B,)
_ROUTE = "aes128-sha256-x25519"
"""IKEv1 has no AEAD for itself."""


def _both(one: End, other: End, *protocols: Protocol, version: int = 4, **more: Any) -> tuple[Probe, ...]:
    return tuple(
        replace(Probe(*ends, protocol, version=version), **more)
        for protocol in protocols or (Protocol.UDP,)
        for ends in ((one, other), (other, one))
    )


def usual(version: int = 4) -> tuple[Probe, ...]:
    """What every configuration is asked: within, beside and outside the first networks, long packets, few hops."""
    every = (Protocol.UDP, Protocol.TCP, Protocol.ICMP)
    return (
        *_both(End.CLIENT, End.SERVER, *every, version=version),
        *_both(End.CLIENT_2, End.SERVER, version=version),
        *_both(End.CLIENT, End.SERVER_2, version=version),
        *_both(End.CLIENT_2, End.SERVER_2, version=version),
        *_both(End.GATEWAY_A, End.SERVER, Protocol.UDP, Protocol.ICMP, version=version),
        *_both(End.CLIENT, End.GATEWAY_B, version=version),
        *_both(End.GATEWAY_A, End.GATEWAY_B, version=version),
        *_both(End.OUTSIDE_A, End.SERVER, version=version),
        *_both(End.CLIENT, End.OUTSIDE_B, version=version),
        *_both(End.OUTSIDE_A, End.OUTSIDE_B, Protocol.UDP, Protocol.ICMP, version=version),
        *_both(End.CLIENT, End.SERVER, version=version, hops=2),
        *_both(End.CLIENT, End.SERVER, version=version, hops=3),
        *_both(End.GATEWAY_A, End.SERVER, version=version, hops=2),
        *_both(End.CLIENT, End.SERVER, version=version, tos=0xB9),
        *_both(End.CLIENT, End.SERVER, version=version, size=1372),
        *_both(End.CLIENT, End.SERVER, version=version, size=1452),
        Probe(End.FORGER, End.CLIENT, version=version),
        Probe(End.FORGER, End.GATEWAY_A, version=version),
        Probe(End.STRANGER_B, End.CLIENT, version=version),
        Probe(End.SERVER, End.STRANGER_A, version=version),
        Probe(End.STRANGER_B, End.GATEWAY_A, version=version),
    )


_USUAL, _SIX = usual(), usual(6)


def _plain(name: str, about: str, *children: Child, connection: Connection | None = None, **more: Any) -> Case:
    """One connection with the usual probes."""
    made = replace(connection or Connection(), children=children or (Child(),))
    case = Case(name, about, (made,), _USUAL)
    return replace(case, **more)


def _esp(name: str, proposal: str, reason: str = "", about: str = "") -> Case:
    """Another cipher."""
    kept = Carrier.KERNEL if reason else Carrier.ENGINE
    return _plain(name, about or f"ESP with {proposal}", Child(esp=proposal), carrier=kept, reason=reason)


def _ciphers() -> tuple[Case, ...]:
    return (
        _esp("gcm-128", "aes128gcm16-x25519"),
        _esp("gcm-192", "aes192gcm16-x25519"),
        _esp("gcm-256", "aes256gcm16-x25519"),
        _esp("chacha", "chacha20poly1305-x25519"),
        _esp("gcm-esn", "aes128gcm16-x25519-esn"),
        _esp("gcm-esn-or-not", "aes256gcm16-x25519-esn-noesn"),
        _esp("chacha-esn", "chacha20poly1305-esn"),
        _esp("cbc-sha256", "aes128-sha256-x25519", "algorithm"),
        _esp("cbc-sha1", "aes128-sha1", "algorithm"),
        _esp("cbc-256-sha512", "aes256-sha512-x25519", "algorithm"),
        _esp("gcm-icv8", "aes128gcm8-x25519", "algorithm"),
        _esp("ccm", "aes128ccm16-x25519", "algorithm"),
        _esp("ctr", "aes128ctr-sha256", "algorithm"),
    )


def _windows() -> tuple[Case, ...]:
    return (
        _plain("window-0", "no replay protection", Child(options=("replay_window = 0",))),
        _plain("window-128", "a replay window of 128", Child(options=("replay_window = 128",))),
        _plain(
            "window-1024-esn",
            "a replay window of 1024 with ESN",
            Child(esp="aes128gcm16-x25519-esn", options=("replay_window = 1024",)),
        ),
    )


def _families() -> tuple[Case, ...]:
    six = Child(local="{near6}", remote="{far6}")
    both = Child(local="{near},{near6}", remote="{far},{far6}")
    return (
        _plain("6in4", "IPv6 inside, IPv4 outside", six, probes=_SIX),
        _plain("6in6", "IPv6 inside and outside", six, connection=Connection(outer=6), probes=_SIX),
        _plain("4in6", "IPv4 inside, IPv6 outside", connection=Connection(outer=6)),
        _plain("46in4", "both versions in one child", both, probes=_USUAL + _SIX),
        _plain("46in6", "the same over IPv6", both, connection=Connection(outer=6), probes=_USUAL + _SIX),
        Case(
            "4-and-6",
            "a child for each version in one connection",
            (Connection(children=(Child(), replace(six, name="net6"))),),
            _USUAL + _SIX,
            initiate=("net", "net6"),
        ),
    )


def _nat_t() -> tuple[Case, ...]:
    encap = Connection(options=("encap = yes",))
    return (
        _plain("encap", "UDP encapsulation", connection=encap),
        _plain(
            "encap-chacha-esn",
            "the same with ChaCha20 and ESN",
            Child(esp="chacha20poly1305-esn"),
            connection=encap,
        ),
        _plain(
            "encap-6in4",
            "IPv6 in UDP",
            Child(local="{near6}", remote="{far6}"),
            connection=encap,
            probes=_SIX,
        ),
        _plain(
            "encap-over-6",
            "UDP encapsulation over IPv6",
            connection=replace(encap, outer=6),
            carrier=Carrier.KERNEL,
            reason="UDP encapsulation over IPv6",
        ),
        _plain("no-mobike", "without MOBIKE", connection=Connection(options=("mobike = no",))),
    )


def _several() -> tuple[Case, ...]:
    second = Child("net2", "{near2}", "{far2}")
    return (
        Case(
            "two-children",
            "two children with networks of their own",
            (Connection(children=(Child(), second)),),
            _USUAL,
            initiate=("net", "net2"),
        ),
        Case(
            "crossed",
            "what belongs to one child comes through the other",
            (Connection(children=(Child(), second)),),
            _USUAL,
            initiate=("net", "net2"),
            crossed=True,
        ),
        Case(
            "shared-remote",
            "two children to one remote network",
            (Connection(children=(Child(), Child("net2", "{near2}", "{far}", remote_b="{far2}", local_b="{near}"))),),
            _USUAL,
            initiate=("net", "net2"),
        ),
        Case(
            "shared-local",
            "two children from one local network",
            (Connection(children=(Child(), Child("net2", "{near}", "{far2}", remote_b="{far}", local_b="{near2}"))),),
            _USUAL,
            initiate=("net", "net2"),
        ),
        _plain("two-by-two", "two networks on each side of one child", Child("net", "{near},{near2}", "{far},{far2}")),
        Case(
            "inside-another",
            "a child whose networks lie inside another's",
            (
                Connection(
                    children=(
                        Child("net", "10.0.0.0/12", "10.2.0.0/15", local_b="10.2.0.0/15", remote_b="10.0.0.0/12"),
                        Child("net2"),
                    )
                ),
            ),
            _USUAL,
            initiate=("net", "net2"),
        ),
        Case(
            "two-connections",
            "two connections between the same gateways",
            (Connection(), Connection("second", (second,), role="-second")),
            _USUAL,
            initiate=("net", "net2"),
        ),
        Case(
            "unique-replace",
            "unique = replace, and the peer comes again without having taken the tunnel down",
            (
                Connection(options=("unique = replace",)),
                Connection("other", (Child("again"),), options=("dpd_delay = 300s",), sides=_B),
            ),
            _USUAL,
            acts=(Act.AGAIN,),
        ),
        Case(
            "unique-no",
            "unique = no, and the peer comes again: two tunnels for the same networks",
            (
                Connection(options=("unique = no",)),
                Connection("other", (Child("again"),), options=("unique = no", "dpd_delay = 300s"), sides=_B),
            ),
            _USUAL,
            acts=(Act.AGAIN,),
            carrier=Carrier.PARTLY,
            reason="is not the outbound SA in use",
        ),
        _plain("hosts", "two hosts only", Child("net", "{host}/32", "{other_host}/32")),
        _plain("gateways", "between the gateways' inner addresses", Child("net", "{gate}/32", "{other_gate}/32")),
        _plain(
            "narrowed",
            "one side offers more than the other takes",
            Child("net", "10.0.0.0/8", "10.0.0.0/8", local_b="{near}", remote_b="{far}"),
        ),
        _plain(
            "range",
            "a range of addresses that is no network",
            Child("net", "{near}", "{far}", local_b="10.2.0.5-10.2.0.20", remote_b="{far}"),
        ),
        _plain(
            "to-anywhere",
            "everything to the other side, but what stays local",
            Child("net", "{near}", "0.0.0.0/0", local_b="0.0.0.0/0", remote_b="{far}"),
        ),
    )


def _ports(port: int = 5000) -> tuple[Probe, ...]:
    """To and from a port, and to and from others."""
    return tuple(
        probe
        for protocol in (Protocol.UDP, Protocol.TCP)
        for one, other in (
            (End.CLIENT, End.SERVER),
            (End.GATEWAY_A, End.SERVER),
            (End.CLIENT, End.GATEWAY_B),
            (End.GATEWAY_A, End.GATEWAY_B),
        )
        if protocol is Protocol.UDP or (one is End.CLIENT and other is End.SERVER)
        for probe in (
            Probe(one, other, protocol, port=port),
            Probe(other, one, protocol, port=40000, source_port=port),
            Probe(one, other, protocol, port=40000, source_port=port),
            Probe(other, one, protocol, port=port),
            Probe(one, other, protocol, port=port + 1),
            Probe(other, one, protocol, port=40000, source_port=port + 1),
        )
    )


def _selectors() -> tuple[Case, ...]:
    return (
        _plain(
            "udp-port",
            "UDP to one port alone",
            Child("net", "{near}[udp]", "{far}[udp/5000]", local_b="{near}[udp/5000]", remote_b="{far}[udp]"),
            probes=_USUAL + _ports(),
            forged=False,
        ),
        _plain(
            "tcp-port",
            "TCP to one port alone",
            Child("net", "{near}[tcp]", "{far}[tcp/5000]", local_b="{near}[tcp/5000]", remote_b="{far}[tcp]"),
            probes=_USUAL + _ports(),
            forged=False,
        ),
        _plain("udp", "UDP alone", Child("net", "{near}[udp]", "{far}[udp]"), probes=_USUAL + _ports()),
        _plain("icmp", "ICMP alone", Child("net", "{near}[icmp]", "{far}[icmp]"), probes=_USUAL, forged=False),
        Case(
            "port-beside-net",
            "a child for one port beside one for all",
            (
                Connection(
                    children=(
                        Child(),
                        Child(
                            "net2",
                            "{near}[udp]",
                            "{far}[udp/5000]",
                            local_b="{near}[udp/5000]",
                            remote_b="{far}[udp]",
                        ),
                    )
                ),
            ),
            _USUAL + _ports(),
            initiate=("net", "net2"),
            carrier=Carrier.PARTLY,
            reason="covers part of its selector",
        ),
        Case(
            "tcp-beside-udp",
            "children for the same networks and different protocols, rekeyed from each side",
            (
                Connection(
                    children=(
                        Child("net", "{near}[tcp]", "{far}[tcp]"),
                        Child("net2", "{near}[udp]", "{far}[udp]"),
                    )
                ),
            ),
            _USUAL,
            initiate=("net", "net2"),
            acts=(Act.REKEY_A, Act.REKEY_B),
            forged=False,
            carrier=Carrier.PARTLY,
            reason="covers part of its selector",
        ),
        _plain("gre", "GRE between sites", Child("net", "{near}[gre]", "{far}[gre]"), probes=_GRE, forged=False),
    )


_GRE = (*_both(End.CLIENT, End.SERVER, Protocol.GRE, Protocol.UDP), *_both(End.GATEWAY_A, End.GATEWAY_B, Protocol.GRE))


def _shunts(name: str, about: str, mode: str, a: tuple[str, str], b: tuple[str, str] | None, **more: Any) -> Case:
    """A tunnel, and a policy that excepts something from it: of local and remote selector at ``a``, and at ``b``."""
    local_b, remote_b = b or (None, None)
    options = (f"mode = {mode}", "start_action = trap")
    child = Child("except", *a, "", options, local_b=local_b, remote_b=remote_b)
    shunt = Connection("shunts", (child,), shunts=True, sides=(*_A, *_B) if b else _A)
    return replace(Case(name, about, (Connection(), shunt), _USUAL + _ports()), **more)


def _exceptions() -> tuple[Case, ...]:
    return (
        _shunts(
            "pass-port",
            "UDP to one port goes in clear",
            "pass",
            ("{near}[udp]", "{far}[udp/5000]"),
            ("{near}[udp/5000]", "{far}[udp]"),
        ),
        _shunts("pass-host", "a host goes in clear", "pass", ("{host}/32", "{far}"), ("{near}", "{other_host}/32")),
        _shunts("drop-host", "a host may not talk", "drop", ("{host}/32", "{far}"), None),
        _shunts("drop-port", "UDP from a port may not pass", "drop", ("{near}[udp/5000]", "{far}[udp]"), None),
        _shunts("pass-beside", "an exception elsewhere", "pass", ("{near2}", "{far2}"), ("{near2}", "{far2}")),
    )


def _traps() -> tuple[Case, ...]:
    trigger = Probe(End.CLIENT, End.SERVER, port=9)
    return (
        _plain(
            "trap", "the first packet brings it up", Child(a=("start_action = trap",)), initiate=(), trigger=trigger
        ),
        _plain(
            "trap-both",
            "the same from both sides",
            Child(options=("start_action = trap",)),
            initiate=(),
            trigger=replace(trigger, source=End.SERVER, destination=End.CLIENT),
        ),
        _plain(
            "trap-port",
            "a trap for one port",
            Child(
                "net",
                "{near}[udp]",
                "{far}[udp/5000]",
                local_b="{near}[udp/5000]",
                remote_b="{far}[udp]",
                a=("start_action = trap",),
            ),
            initiate=(),
            trigger=replace(trigger, port=5000),
            probes=_USUAL + _ports(),
            forged=False,
        ),
        _plain(
            "trap-unused",
            "a trap that nothing has sprung, beside a tunnel",
            Child(),
            Child("net2", "{near2}", "10.99.0.0/24", a=("start_action = trap",)),
        ),
        _plain("start", "brought up by start_action", Child(a=("start_action = start",)), initiate=()),
    )


_OUTER = (
    *_both(End.OUTSIDE_A, End.OUTSIDE_B, Protocol.UDP, Protocol.TCP, Protocol.ICMP),
    *_both(End.OUTSIDE_A, End.OUTSIDE_B, size=1372),
    *_both(End.OUTSIDE_A, End.OUTSIDE_B, size=1452),
    *_both(End.OUTSIDE_A, End.OUTSIDE_B, port=1701, source_port=1701),
    *_both(End.OUTSIDE_A, End.OUTSIDE_B, hops=1),
    *_both(End.CLIENT, End.SERVER),
    *_both(End.CLIENT, End.OUTSIDE_B),
    *_both(End.OUTSIDE_A, End.SERVER),
)


def _transport() -> tuple[Case, ...]:
    host = Child("net", "{here}/32", "{there}/32", options=("mode = transport",))
    outer: dict[str, Any] = {"probes": _OUTER, "forged": False}
    kept: dict[str, Any] = {**outer, "carrier": Carrier.KERNEL, "reason": "transport mode"}
    return (
        _plain("transport", "transport mode between the gateways", host, **outer),
        _plain("transport-encap", "the same in UDP", host, connection=Connection(options=("encap = yes",)), **kept),
        _plain("transport-esn", "the same with ESN", replace(host, esp="aes256gcm16-x25519-esn"), **outer),
        _plain(
            "transport-l2tp",
            "transport mode for UDP port 1701",
            replace(host, local="{here}/32[udp/1701]", remote="{there}/32[udp/1701]"),
            **outer,
        ),
        _plain(
            "transport-gre",
            "transport mode for GRE",
            replace(host, local="{here}/32[gre]", remote="{there}/32[gre]"),
            **{**outer, "probes": _OUTER + _both(End.OUTSIDE_A, End.OUTSIDE_B, Protocol.GRE)},
        ),
        _plain(
            "transport-6",
            "transport mode over IPv6",
            replace(host, local="{here6}/128", remote="{there6}/128"),
            connection=Connection(outer=6),
            **{**kept, "probes": tuple(replace(probe, version=6) for probe in _OUTER)},
        ),
        Case(
            "transport-and-tunnel",
            "transport mode beside a tunnel",
            (Connection(children=(Child(), replace(host, name="host"))),),
            _USUAL + _OUTER,
            initiate=("net", "host"),
            forged=False,
        ),
        Case(
            "transport-two",
            "transport mode for TCP, and beside it, each in a tunnel, for what goes to a UDP port and comes from it",
            (
                Connection(
                    children=(
                        replace(host, local="{here}/32[tcp]", remote="{there}/32[tcp]"),
                        replace(host, name="to", local="{here}/32[udp]", remote="{there}/32[udp/1701]"),
                        replace(host, name="from", local="{here}/32[udp/1701]", remote="{there}/32[udp]"),
                    )
                ),
            ),
            (
                *_OUTER,
                *_both(End.OUTSIDE_A, End.OUTSIDE_B, port=1701),
                *_both(End.OUTSIDE_A, End.OUTSIDE_B, source_port=1701),
            ),
            acts=(Act.REKEY_A, Act.REKEY_B),
            initiate=("net", "to", "from"),
            forged=False,
        ),
        _plain("beet", "BEET mode", replace(host, options=("mode = beet",)), **{**kept, "reason": "beet mode"}),
    )


def _own_ends() -> tuple[Case, ...]:
    """Tunnel mode for what the gateways themselves say to each other: swanctl's default."""
    host = Child("net", "dynamic", "dynamic")
    outer: dict[str, Any] = {"probes": _OUTER, "forged": False}
    tcp = replace(host, local="dynamic[tcp]", remote="dynamic[tcp]")
    udp = Child("udp", "dynamic[udp]", "dynamic[udp]", options=("mode = transport",))
    return (
        _plain("own-ends", "tunnel mode between the gateways", host, **outer, acts=(Act.REKEY_A, Act.REKEY_B)),
        _plain("own-ends-encap", "the same in UDP", host, connection=Connection(options=("encap = yes",)), **outer),
        _plain(
            "own-ends-gre",
            "tunnel mode for GRE without a device",
            replace(host, local="dynamic[gre]", remote="dynamic[gre]"),
            **{**outer, "probes": _OUTER + _both(End.OUTSIDE_A, End.OUTSIDE_B, Protocol.GRE)},
        ),
        Case(
            "own-ends-and-tunnel",
            "tunnel mode between the gateways beside one between their networks",
            (Connection(children=(Child(), replace(host, name="host"))),),
            _USUAL + _OUTER,
            initiate=("net", "host"),
            forged=False,
        ),
        Case(
            "own-ends-two",
            "tunnel mode for TCP between the gateways, and transport mode for UDP",
            (Connection(children=(tcp, udp)),),
            _OUTER,
            acts=(Act.REKEY_A, Act.REKEY_B),
            initiate=("net", "udp"),
            forged=False,
        ),
    )


def _device(name: str, about: str, kind: str, protocol: str = "gre", **more: Any) -> Case:
    """A GRE or IPIP device at both gateways, with routes, and transport mode for its packets."""

    def lines(here: int, there: int) -> tuple[str, ...]:
        return (
            f"ip link add tun1 type {kind} local 10.0.0.{here} remote 10.0.0.{there} ttl 64",
            "ip link set tun1 mtu 1400 up",
            f"ip route add 10.{there}.0.0/24 dev tun1",
        )

    suffix = f"[{protocol}]" if protocol else ""
    child = Child(local=f"{{here}}/32{suffix}", remote=f"{{there}}/32{suffix}", options=("mode = transport",))
    gone = ("ip link del tun1",)
    case = _plain(name, about, child, a=lines(1, 2), b=lines(2, 1), undo_a=gone, undo_b=gone, forged=False)
    return replace(case, **more)


def _devices() -> tuple[Case, ...]:
    return (
        _device("gre-device", "a GRE device in transport mode, rekeyed", "gre", acts=(Act.REKEY_A, Act.REKEY_B)),
        _device("gre-device-tos", "the same, with the TOS of the packet inside", "gre tos inherit"),
        _device("gre-device-key", "a GRE device with a key", "gre key 7", carrier=Carrier.KERNEL, reason="has a key"),
        _device("gre-device-all", "a GRE device, the SAs for all between the gateways", "gre", ""),
        _device("ipip-device", "an IPIP device in transport mode", "ipip", "4"),
    )


def _routed() -> tuple[Case, ...]:
    up, gone = ("ip link add ipsec0 type xfrm dev wan0 if_id 42", "ip link set ipsec0 up"), ("ip link del ipsec0",)
    ids = ("if_id_in = 42", "if_id_out = 42")
    anything = Child("net", "0.0.0.0/0", "0.0.0.0/0")
    to_b, to_a = ("ip route add 10.2.0.0/24 dev ipsec0",), ("ip route add 10.1.0.0/24 dev ipsec0",)
    kept: dict[str, Any] = {
        "forged": False,
        "carrier": Carrier.KERNEL,
        "reason": "leaves out what XFRM interface ipsec0",
    }
    routed: dict[str, Any] = {"undo_a": gone, "undo_b": gone}
    # strongSwan before 5.9.10 does not see that an XFRM interface is used.
    carried = Connection("routed", options=ids)
    accelerate = '\n[connections.routed]\nmode = "accelerate"\n'
    vti = (
        "ip link add ipsec0 type vti local {here} remote {there} key 42",
        "sysctl -qw net.ipv4.conf.ipsec0.disable_policy=1",
        "ip link set ipsec0 up",
    )
    # Charon's own routes would go before those to the VTI: it has to be told not to make them, or be overruled.
    first_b, first_a = (f"ip rule add to 10.{n}.0.0/24 pref 100 lookup main" for n in (2, 1))
    last = ("ip rule del pref 100",)
    marked = Connection(children=(replace(anything, options=("mark_in = 42", "mark_out = 42")),))
    return (
        _plain(
            "xfrmi",
            "an XFRM interface for two networks",
            connection=Connection(options=ids),
            a=up + to_b,
            b=up + to_a,
            **routed,
            **kept,
        ),
        _plain(
            "xfrmi-anything",
            "an XFRM interface for anything, with a route",
            anything,
            connection=carried,
            a=up + to_b,
            b=up + to_a,
            gateway=accelerate,
            forged=False,
            **routed,
        ),
        _plain(
            "xfrmi-rekey",
            "the same, rekeyed, both IP versions inside",
            replace(anything, local="0.0.0.0/0,::/0", remote="0.0.0.0/0,::/0"),
            connection=carried,
            a=(*up, *to_b, "ip -6 route add fd02::/64 dev ipsec0"),
            b=(*up, *to_a, "ip -6 route add fd01::/64 dev ipsec0"),
            probes=_USUAL + _SIX,
            acts=(Act.REKEY_A, Act.REKEY_B),
            gateway=accelerate,
            forged=False,
            **routed,
        ),
        _plain(
            "xfrmi-two-routes",
            "the same with routes to two networks",
            anything,
            connection=carried,
            gateway=accelerate,
            forged=False,
            a=(*up, *to_b, "ip route add 10.12.0.0/24 dev ipsec0"),
            b=(*up, *to_a, "ip route add 10.11.0.0/24 dev ipsec0"),
            **routed,
        ),
        _plain(
            "xfrmi-one-side",
            "an XFRM interface here, policies there",
            connection=Connection(a=ids),
            a=up + to_b,
            undo_a=gone,
            **kept,
        ),
        Case(
            "vti",
            "a VTI (marks) for anything, with a route",
            (marked,),
            _USUAL,
            a=(*tuple(line.format(here="10.0.0.1", there="10.0.0.2") for line in vti), *to_b, first_b),
            b=(*tuple(line.format(here="10.0.0.2", there="10.0.0.1") for line in vti), *to_a, first_a),
            undo_a=gone + last,
            undo_b=gone + last,
            **{**kept, "reason": "route-based"},
        ),
        _plain(
            "set-mark",
            "decrypted packets get a mark",
            Child(options=("set_mark_in = 7",)),
            carrier=Carrier.KERNEL,
            reason="SET_MARK",
        ),
    )


def _ikev1() -> tuple[Case, ...]:
    one = Connection(options=("version = 1",), ike=_ROUTE)
    return (
        _plain("ikev1", "IKEv1 main mode", Child(esp="aes128gcm16-x25519"), connection=one),
        _plain(
            "ikev1-aggressive",
            "IKEv1 aggressive mode without PFS",
            Child(esp="aes256gcm16"),
            connection=replace(one, options=(*one.options, "aggressive = yes")),
        ),
        Case(
            "ikev1-two-children",
            "IKEv1 with two children",
            (replace(one, children=(Child(), Child("net2", "{near2}", "{far2}"))),),
            _USUAL,
            initiate=("net", "net2"),
        ),
        _plain("ikev1-rekey", "IKEv1, rekeyed", connection=one, acts=(Act.REKEY_A, Act.REKEY_B)),
    )


_POOL = "pools {{ virtual {{ addrs = 10.9.0.0/24 }} }}"
_DIALS = (
    *_both(End.VIRTUAL, End.CLIENT, Protocol.UDP, Protocol.TCP, Protocol.ICMP),
    *_both(End.VIRTUAL, End.GATEWAY_A),
    *_both(End.VIRTUAL, End.CLIENT_2),
    *_both(End.VIRTUAL, End.CLIENT, size=1372),
    *_both(End.CLIENT, End.SERVER),
    *_both(End.OUTSIDE_A, End.OUTSIDE_B),
)


def _virtual() -> tuple[Case, ...]:
    dialled = Connection(a=("pools = virtual", "unique = replace"), b=("vips = 0.0.0.0",))
    child = Child("net", "{near}", "dynamic", local_b="dynamic", remote_b="{far}")
    more: dict[str, Any] = {"pools": _POOL, "probes": _DIALS, "forged": False, "initiator": Role.GATEWAY_B}
    return (
        _plain("virtual", "gateway B dials in for an address", child, connection=dialled, **more),
        _plain(
            "virtual-anything",
            "the same, and everything goes through the tunnel",
            replace(child, local="0.0.0.0/0", remote_b="0.0.0.0/0"),
            connection=dialled,
            **more,
        ),
        _plain(
            "virtual-encap",
            "the same behind a NAT",
            child,
            connection=replace(dialled, options=("encap = yes",)),
            **more,
        ),
    )


def _headers() -> tuple[Case, ...]:
    return (
        _plain("no-df", "copy_df = no", Child(options=("copy_df = no",))),
        _plain("no-ecn", "copy_ecn = no", Child(options=("copy_ecn = no",))),
        _plain("no-dscp", "copy_dscp = no", Child(options=("copy_dscp = no",))),
        _plain(
            "dscp-in", "copy_dscp = in", Child(options=("copy_dscp = in",)), carrier=Carrier.KERNEL, reason="DECAP_DSCP"
        ),
        _plain(
            "tfc", "padding to a length", Child(options=("tfc_padding = 300",)), carrier=Carrier.KERNEL, reason="TFCPAD"
        ),
        _plain(
            "ipcomp",
            "IPComp",
            Child(options=("ipcomp = yes",)),
            forged=False,
            carrier=Carrier.KERNEL,
            reason="several templates",
        ),
        _plain(
            "ah",
            "AH alone",
            Child(esp="", options=("ah_proposals = sha256-x25519",)),
            forged=False,
            carrier=Carrier.KERNEL,
        ),
    )


def _lives() -> tuple[Case, ...]:
    return (
        _plain("rekey", "rekeyed from each side", acts=(Act.REKEY_A, Act.REKEY_B)),
        _plain("rekey-at-once", "rekeyed from both sides at once", acts=(Act.BOTH_REKEY,)),
        _plain("reauth", "reauthenticated", acts=(Act.REAUTHENTICATE,)),
        _plain(
            "make-before-break",
            "reauthenticated with both tunnels up meanwhile",
            acts=(Act.REAUTHENTICATE,),
            make_before_break=True,
        ),
        _plain(
            "life-packets",
            "a child that lives for packets",
            Child(options=("life_packets = 100000", "rekey_packets = 20", "rand_packets = 0")),
        ),
        _plain(
            "life-bytes",
            "a child that lives for bytes",
            Child(options=("life_bytes = 100000000", "rekey_bytes = 8000", "rand_bytes = 0")),
        ),
        _plain("inactivity", "ended when idle for long", Child(options=("inactivity = 600",))),
        _plain("priority", "a fixed policy priority", Child(options=("priority = 1000",))),
        _plain("no-policies", "policies = no", Child(options=("policies = no",)), tunnels=False, forged=False),
        _plain(
            "reload",
            "loaded anew with other networks",
            acts=(Act.RELOAD,),
            reload=(Connection(children=(Child("net", "{near},{near2}", "{far},{far2}"),)),),
            carrier=Carrier.PARTLY,
            reason="waits for the rest",
        ),
        _plain("offload-auto", "hw_offload = auto without such hardware", Child(options=("hw_offload = auto",))),
    )


def catalogue() -> tuple[Case, ...]:
    """All of them, in a fixed order; no two have one name."""
    groups = (
        *(_ciphers(), _windows(), _families(), _nat_t(), _several(), _selectors(), _exceptions(), _traps()),
        *(_transport(), _own_ends(), _devices(), _routed(), _ikev1(), _virtual(), _headers(), _lives()),
    )
    return tuple(case for group in groups for case in group)


def chosen(wish: str, seed: int) -> tuple[Case, ...]:
    """All for "all", so many drawn with ``seed`` for a number, else those that are named, with commas between.

    Raises IpsecGwError naming what is unknown.
    """
    known = {case.name: case for case in catalogue()}
    if wish == "all":
        return tuple(known.values())
    if wish.isdigit():
        drawn = random.Random(seed).sample(sorted(known), min(int(wish), len(known)))  # noqa: S311 - repeatable
        return tuple(case for case in known.values() if case.name in drawn)
    names = [name.strip() for name in wish.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise IpsecGwError(f"no configuration {', '.join(unknown)} in the matrix - known: {', '.join(known)}")
    return tuple(known[name] for name in names)
