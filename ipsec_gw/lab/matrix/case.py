"""A configuration of the matrix: both swanctl.conf files out of one text, what is sent, and who is to carry it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from textwrap import indent

from ipsec_gw.lab.matrix.probes import Probe
from ipsec_gw.lab.topology import Role

_SIDES: Mapping[Role, Mapping[str, str]] = {
    Role.GATEWAY_A: {
        "me": "gwa",
        "peer": "gwb",
        "here": "10.0.0.1",
        "there": "10.0.0.2",
        "here6": "2001:db8::1",
        "there6": "2001:db8::2",
        "near": "10.1.0.0/24",
        "far": "10.2.0.0/24",
        "near2": "10.11.0.0/24",
        "far2": "10.12.0.0/24",
        "near6": "fd01::/64",
        "far6": "fd02::/64",
        "gate": "10.1.0.1",
        "other_gate": "10.2.0.1",
        "host": "10.1.0.10",
        "other_host": "10.2.0.10",
    },
    Role.GATEWAY_B: {
        "me": "gwb",
        "peer": "gwa",
        "here": "10.0.0.2",
        "there": "10.0.0.1",
        "here6": "2001:db8::2",
        "there6": "2001:db8::1",
        "near": "10.2.0.0/24",
        "far": "10.1.0.0/24",
        "near2": "10.12.0.0/24",
        "far2": "10.11.0.0/24",
        "near6": "fd02::/64",
        "far6": "fd01::/64",
        "gate": "10.2.0.1",
        "other_gate": "10.1.0.1",
        "host": "10.2.0.10",
        "other_host": "10.1.0.10",
    },
}
"""What a text may name in braces, as each gateway sees it."""


@dataclass(frozen=True, slots=True)
class Child:
    """A CHILD_SA's section. ``options`` are lines of both sides, ``a`` and ``b`` those of one; an ``esp`` of "" leaves
    the proposals out.
    """

    name: str = "net"
    local: str = "{near}"
    remote: str = "{far}"
    esp: str = "aes128gcm16-x25519"
    options: tuple[str, ...] = ()
    a: tuple[str, ...] = ()
    b: tuple[str, ...] = ()
    local_b: str | None = None
    remote_b: str | None = None

    def text(self, role: Role) -> str:
        """The section, names in braces still in it."""
        first = role is Role.GATEWAY_A
        local = self.local if first or self.local_b is None else self.local_b
        remote = self.remote if first or self.remote_b is None else self.remote_b
        lines = [f"local_ts = {local}"] * bool(local) + [f"remote_ts = {remote}"] * bool(remote)
        lines += [f"esp_proposals = {self.esp}"] * bool(self.esp)
        return _section(self.name, [*lines, *self.options, *(self.a if first else self.b)])


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection's section, with pre-shared keys; ``sides`` are the gateways that have it. ``role`` is behind both
    identities: connections that differ in nothing but their children are one to charon.
    """

    name: str = "site"
    children: tuple[Child, ...] = (Child(),)
    outer: int = 4
    ike: str = "aes128gcm16-prfsha256-x25519"
    options: tuple[str, ...] = ()
    a: tuple[str, ...] = ()
    b: tuple[str, ...] = ()
    sides: tuple[Role, ...] = (Role.GATEWAY_A, Role.GATEWAY_B)
    shunts: bool = False
    role: str = ""

    def text(self, role: Role) -> str:
        """The section, names in braces still in it."""
        six = "6" if self.outer == 6 else ""
        ends = [f"local_addrs = {{here{six}}}", f"remote_addrs = {{there{six}}}", f"proposals = {self.ike}"]
        auth = [_section(end, ["auth = psk", f"id = {who}{self.role}"]) for end, who in _IDENTITIES]
        children = _section("children", [child.text(role) for child in self.children])
        own = self.a if role is Role.GATEWAY_A else self.b
        return _section(self.name, [*([] if self.shunts else [*ends, *auth]), *self.options, *own, children])


_IDENTITIES = (("local", "{me}"), ("remote", "{peer}"))


def _section(name: str, lines: list[str]) -> str:
    return "\n".join([f"{name} {{{{", *(indent(line, "  ") for line in lines), "}}"])


class Act(StrEnum):
    """What happens to a tunnel that is up; all probes are sent again after it."""

    REKEY_A = "A rekeys its children"
    REKEY_B = "B rekeys its children"
    BOTH_REKEY = "both rekey at once"
    REAUTHENTICATE = "A reauthenticates"
    RELOAD = "both load another configuration and A initiates"
    AGAIN = "B, which has forgotten it, initiates"


class Carrier(StrEnum):
    """Who is to carry a configuration's SAs."""

    ENGINE = "engine"
    KERNEL = "kernel"
    PARTLY = "engine, partly"


@dataclass(frozen=True, slots=True)
class Case:
    """A configuration. ``name`` is its own, ``about`` says it to people.

    ``initiate`` are the children that the ``initiator`` brings up; ``trigger`` is a packet that brings a trap up. ``a``
    and ``b`` are commands in the gateways' namespaces, ``undo_a`` and ``undo_b`` those that take them back. ``reload``
    are the connections of :attr:`Act.RELOAD`. ``make_before_break`` is charon's setting for reauthentication,
    ``gateway`` what ipsec-gw's configuration has for it.

    ``forged``: gateway B sends packets from and for strangers through the tunnel too; ``crossed``: and what belongs to
    one of two tunnels through the other. Without ``tunnels`` nothing goes through one. ``carrier`` with its ``reason``
    (words of it) is what is expected, ``engines`` where it differs for one.
    """

    name: str
    about: str
    connections: tuple[Connection, ...]
    probes: tuple[Probe, ...]
    initiate: tuple[str, ...] = ("net",)
    initiator: Role = Role.GATEWAY_A
    trigger: Probe | None = None
    a: tuple[str, ...] = ()
    b: tuple[str, ...] = ()
    undo_a: tuple[str, ...] = ()
    undo_b: tuple[str, ...] = ()
    acts: tuple[Act, ...] = ()
    reload: tuple[Connection, ...] = ()
    forged: bool = True
    crossed: bool = False
    pools: str = ""
    tunnels: bool = True
    make_before_break: bool = False
    gateway: str = ""
    carrier: Carrier = Carrier.ENGINE
    reason: str = ""
    engines: Mapping[str, tuple[Carrier, str]] | None = None

    def conf(self, role: Role, connections: tuple[Connection, ...] | None = None) -> str:
        """A gateway's swanctl.conf."""
        chosen = [one for one in (connections or self.connections) if role in one.sides]
        pools = self.pools if role is Role.GATEWAY_A else ""
        text = _section("connections", [one.text(role) for one in chosen])
        secret = _section("secrets", [_section("ike-1", ['secret = "lab only"'])])
        return "\n".join([text, pools, secret, ""]).format(**_SIDES[role])

    @property
    def lives_by_itself(self) -> bool:
        """It would come up again, or leave something, if its connections stayed loaded."""
        return any("start_action" in self.conf(role) for role in (Role.GATEWAY_A, Role.GATEWAY_B))

    def expected(self, engine: str) -> tuple[Carrier, str]:
        """Who is to carry it beside an engine, and words of the reason where that is not the engine."""
        if engine == "kernel":
            return Carrier.KERNEL, ""
        return (self.engines or {}).get(engine, (self.carrier, self.reason))
