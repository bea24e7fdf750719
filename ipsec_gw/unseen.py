"""What on this machine would no longer see the packets of accelerated tunnels: a pure look at its rules.

ESP that is steered leaves the kernel at XDP, so netfilter and traffic control on the WAN do not meet it, in either
direction. The plaintext comes and goes by ``ipsecgw-up`` instead of the WAN, without XFRM having touched it, and is led
there by policy routing before other rules are asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ipsec_gw.model.firewall import TUNNEL_INTERFACES

KERNEL_END = TUNNEL_INTERFACES[0]
OUR_TABLES = ("ip ipsec-gw", "ip ipsec-gw-hosts", "ip6 ipsec-gw")
"""Of nftables, which have own packets routed once more (ownership.bypass, ownership.marks)."""

OUR_RULES = range(170, 220)
"""Where the rules that lead plaintext to the engine are, and nobody else's should be (``ownership/lead.py``)."""


@dataclass(frozen=True, slots=True)
class FilterRule:
    """A rule of nftables. ``chain`` is family, table and name, ``handle`` its number there.

    ``interfaces`` are those that it names, ``ipsec`` tells that it asks whether XFRM has touched a packet, ``esp`` that
    it looks for ESP or its UDP port, ``accepts`` that it does nothing but let through and count.
    """

    chain: str
    handle: int
    interfaces: frozenset[str]
    ipsec: bool
    esp: bool
    accepts: bool


@dataclass(frozen=True, slots=True)
class Queue:
    """A queueing discipline or a filter of traffic control that is not the kernel's default, nor ours."""

    interface: str
    kind: str


@dataclass(frozen=True, slots=True)
class RoutingRule:
    """A rule of policy routing that is not the kernel's own, nor ours, nor strongSwan's."""

    priority: int
    version: int


@dataclass(frozen=True, slots=True)
class Host:
    """The rules of this machine. ``vrfs`` are the VRFs of interfaces that are in one, ``unread`` what could not be read
    and why.
    """

    wan: frozenset[str] = frozenset()
    filters: tuple[FilterRule, ...] = ()
    queues: tuple[Queue, ...] = ()
    routing: tuple[RoutingRule, ...] = ()
    vrfs: Mapping[str, str] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unseen:
    """``what`` is named as its own tool names it."""

    what: str
    message: str
    way_out: str

    def __str__(self) -> str:
        return f"{self.what}: {self.message} - {self.way_out}"


_KEEP = "or leave the connections that need it to the kernel: accelerate = false"


def unseen(host: Host) -> tuple[Unseen, ...]:
    """Warnings in the order filters, traffic control, policy routing, VRFs."""
    return (*_filters(host), *_queues(host), *_routing(host), *_vrfs(host))


def _filters(host: Host) -> Iterator[Unseen]:
    chains: dict[str, list[FilterRule]] = defaultdict(list)
    for rule in host.filters:
        if not rule.chain.startswith(tuple(f"{table} " for table in OUR_TABLES)):
            chains[rule.chain].append(rule)
    for chain, rules in chains.items():
        what = f"nftables chain {chain}"
        knows_us = any(KERNEL_END in rule.interfaces for rule in rules)
        by_interface = [rule for rule in rules if rule.interfaces & host.wan and not rule.esp]
        if by_interface and not knows_us:
            names = ", ".join(sorted(host.wan & frozenset().union(*(rule.interfaces for rule in by_interface))))
            yield Unseen(
                what,
                f"{_rules(by_interface)} at {names}, and packets of accelerated tunnels come and go by {KERNEL_END}",
                f"say there what holds for {KERNEL_END}, {_KEEP}",
            )
        if by_xfrm := [rule for rule in rules if rule.ipsec]:
            yield Unseen(
                what,
                f"{_rules(by_xfrm)} at what XFRM did, which does not touch packets of accelerated tunnels",
                f'match {KERNEL_END} as well (iifname or oifname "{KERNEL_END}"), {_KEEP}',
            )
        if by_esp := [rule for rule in rules if rule.esp and not rule.accepts]:
            yield Unseen(
                what, f"{_rules(by_esp)} at ESP, and does not see what is steered past the kernel", _capital(_KEEP)
            )


def _rules(rules: list[FilterRule]) -> str:
    handles = ", ".join(str(rule.handle) for rule in rules)
    return f"the rule with handle {handles} looks" if len(rules) == 1 else f"rules with handles {handles} look"


def _capital(text: str) -> str:
    return text.removeprefix("or ")


def _queues(host: Host) -> Iterator[Unseen]:
    for queue in host.queues:
        if queue.interface in host.wan:
            yield Unseen(
                f"traffic control on {queue.interface}",
                f"{queue.kind} neither queues nor sees the ESP that an engine sends and receives",
                f"shape the plaintext on {KERNEL_END} or inside, {_KEEP}",
            )


def _routing(host: Host) -> Iterator[Unseen]:
    for rule in host.routing:
        what = f"IPv{rule.version} routing rule {rule.priority}"
        if rule.priority < OUR_RULES.start:
            yield Unseen(
                what, "goes before ours: packets that it routes are not led to the engine", "give it a higher number"
            )
        elif rule.priority not in OUR_RULES:
            yield Unseen(
                what,
                "is not asked for packets of accelerated tunnels, which ours lead to the engine before",
                f"give it a number below {OUR_RULES.start} if it is to win",
            )


def _vrfs(host: Host) -> Iterator[Unseen]:
    for interface in sorted(host.wan & host.vrfs.keys()):
        yield Unseen(
            f"interface {interface}",
            f"is in the VRF {host.vrfs[interface]}, and the engine knows the main routing table alone",
            "leave its connections to the kernel: accelerate = false",
        )
