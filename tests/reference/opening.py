"""New flows: may such a packet open one, where does it lead, who permits it, and the pair of entries of its session."""

from __future__ import annotations

from ipsec_gw.model.firewall import SELF, Action
from ipsec_gw.model.snapshot import PolicyDirection, XfrmPolicy
from tests.reference import nat, rewrite, translator
from tests.reference.fib import Kind, key_bytes
from tests.reference.ipsec import Fields, fields_of, matching, protecting
from tests.reference.machine import Machine, Way, answer, answer_icmp, is_ipsec
from tests.reference.nat64 import other_protocol
from tests.reference.packets import ACK, FIN, REQUESTS, RST, SYN, TCP, Key, Packet, Verdict, drop, is_martian
from tests.reference.rules import Asked, Decision, decide
from tests.reference.screens import limit_sessions, search
from tests.reference.sessions import Entry
from xdp_steer.flow_layout import SessionFlag, State
from xdp_steer.reasons import Reason

NOBODY = key_bytes("0.0.0.0")
"""The source of routes for NAT64: it is not chosen yet."""


def open_session(machine: Machine, way: Way, key: Key) -> Entry:
    """The forward entry of a new session. Raises Verdict when there is none."""
    packet = way.packet
    if way.port.translated:
        raise drop(Reason.TRANSLATOR_UNKNOWN)
    if translator.is_to_translate(machine, way):
        raise translator.give_in(machine, way)
    search(machine, way)
    _check_beginning(machine, way)
    asked = asked_of(packet, packet.dst, packet.dport)
    try:
        destination = nat.destination_nat(machine.ruleset, machine.ids, way.port.zone, asked, packet.dport)
    except nat.Unmappable:
        raise _parameter_problem(way, 24) from None
    except nat.NotForNat64 as refused:
        raise drop(refused.reason) from None
    found = machine.route(way, destination.address, NOBODY if destination.nat64 else packet.src)
    if found.kind is Kind.LOCAL and destination.nat64:
        raise drop(Reason.NAT64_ADDRESS)
    if found.kind is Kind.LOCAL and is_ipsec(packet.protocol, destination.port):
        raise Verdict("PASS", Reason.HOST_IKE)
    if way.egress and not way.egress.tunnel and _enters(machine, way, key, destination):
        machine.enter_tunnel(way)
    to_zone = way.egress.zone if way.egress else SELF
    decision = permit(machine, way, to_zone, destination.address, destination.port)
    limit_sessions(machine, way, key)
    choice = _source(machine, way, key, to_zone, destination)
    machine.count_pool(choice.tag, flows=1, packets=1)
    return _insert(machine, way, key, to_zone, destination, decision, choice)


def becomes(packet: Packet, key: Key, source: nat.Source, destination: nat.Destination) -> Fields:
    """What the kernel sees of a flow that is translated so."""
    protocol = other_protocol(key.protocol) if destination.nat64 else key.protocol
    return fields_of(packet, source.address, destination.address, protocol, (source.port, destination.port))


def _enters(machine: Machine, way: Way, key: Key, destination: nat.Destination) -> bool:
    """Whether a flow goes into a tunnel: as it is, or as what source NAT into the tunnels' zone makes of it."""
    packet, port = way.packet, machine.tunnel_port
    as_it_is = becomes(packet, key, nat.Source(packet.src, packet.sport), destination)
    if protecting(machine.tunnels, PolicyDirection.OUT, as_it_is):
        return True
    if port is None:
        return False
    try:
        choice = _choice(machine, way, key, port.zone, destination)
    except (nat.NoAddress, nat.Unmappable):
        return False
    if not choice.translates or not choice.candidates:
        return False
    policy = protecting(machine.tunnels, PolicyDirection.OUT, becomes(packet, key, choice.candidates[0], destination))
    return policy is not None and reqid_of(policy) != _came_by(machine, way)


def _came_by(machine: Machine, way: Way) -> int:
    """The tunnel that a packet came out of, 0: none."""
    packet = way.packet
    if not way.port.tunnel:
        return 0
    as_it_is = fields_of(packet, packet.src, packet.dst, packet.protocol, (packet.sport, packet.dport))
    policy = matching(machine.tunnels, PolicyDirection.IN, as_it_is)
    return reqid_of(policy) if policy else 0


def reqid_of(policy: XfrmPolicy) -> int:
    """Of its states, 0: it has none."""
    return policy.templates[0].reqid if policy.allow and policy.templates else 0


def asked_of(packet: Packet, dst: bytes, dport: int) -> Asked:
    code = packet.code16 if packet.is_icmp else dport
    return Asked(packet.family, packet.src, dst, packet.protocol, packet.sport, code)


def _check_beginning(machine: Machine, way: Way) -> None:
    packet, zone = way.packet, machine.zones[way.port.zone]
    if is_martian(packet.src):
        raise drop(Reason.MARTIAN_SOURCE)
    if not way.port.tunnel and not is_ipsec(packet.protocol, packet.dport):
        as_it_is = fields_of(packet, packet.src, packet.dst, packet.protocol, (packet.sport, packet.dport))
        if protecting(machine.tunnels, PolicyDirection.IN, as_it_is):
            raise drop(Reason.CLEAR_OF_PROTECTED)
    if packet.is_icmp and packet.icmp_type not in REQUESTS[packet.family]:
        raise drop(Reason.ICMP_UNSOLICITED)
    if packet.protocol == TCP and zone.syn_check and packet.flags & (SYN | ACK | RST | FIN) != SYN:
        if zone.tcp_reset and not packet.flags & RST:
            raise answer(way, Reason.TCP_NOT_SYN, rewrite.reset(packet))
        raise drop(Reason.TCP_NOT_SYN)


def permit(machine: Machine, way: Way, to_zone: str, dst: bytes, dport: int) -> Decision:
    """The policy that permits. Raises Verdict when none does."""
    packet = way.packet
    decision = decide(machine.ruleset, machine.ids, way.port.zone, to_zone, asked_of(packet, dst, dport))
    if decision.action is Action.PERMIT:
        return decision
    machine.count(decision.rule, packet)
    reason = Reason.DEFAULT_DENY
    if decision.by_rule:
        reason = Reason.POLICY_DENY if decision.action is Action.DENY else Reason.POLICY_REJECT
    if decision.action is Action.DENY or (packet.protocol == TCP and packet.flags & RST):
        raise drop(reason)
    if packet.protocol == TCP:
        raise answer(way, reason, rewrite.reset(packet))
    kind, code = (3, 13) if packet.family == 4 else (1, 1)
    raise answer(way, reason, rewrite.icmp_error(packet, packet.dst, kind, code))


def _source(machine: Machine, way: Way, key: Key, to_zone: str, destination: nat.Destination) -> nat.SourceChoice:
    packet = way.packet
    if way.egress is None:
        return nat.SourceChoice((nat.Source(packet.src, packet.sport),))
    try:
        return _choice(machine, way, key, to_zone, destination)
    except nat.NoAddress:
        raise drop(Reason.NAT_NO_ADDRESS) from None
    except nat.Unmappable:
        raise _parameter_problem(way, 8) from None


def _choice(machine: Machine, way: Way, key: Key, to_zone: str, destination: nat.Destination) -> nat.SourceChoice:
    """Raises NoAddress and Unmappable."""
    packet, egress = way.packet, way.egress
    assert egress is not None
    if destination.nat64:
        chosen = (key, packet.has_ports, egress, machine.seed)
        return nat.nat64_source(machine.ruleset, destination.nat64, *chosen)
    asked = asked_of(packet, destination.address, destination.port)
    zones = (way.port.zone, to_zone)
    vpp = translator.may_translate(machine, packet, destination.address)
    return nat.source_nat(
        *(machine.ruleset, machine.ids, zones, asked, key, packet.has_ports, egress, machine.seed),
        vpp=vpp,
        at_times=machine.vpp_at_times,
    )


def _parameter_problem(way: Way, pointer: int) -> Verdict:
    """NPTv6 cannot translate the address at that place of the header."""
    return answer_icmp(way, Reason.NPTV6_UNMAPPABLE, 4, 0, pointer)


def _insert(
    machine: Machine,
    way: Way,
    key: Key,
    to_zone: str,
    destination: nat.Destination,
    decision: Decision,
    choice: nat.SourceChoice,
) -> Entry:
    packet, sessions = way.packet, machine.sessions
    zone = machine.number(to_zone)
    for source in choice.candidates:
        dport = source.port if packet.is_query else destination.port
        protocol = other_protocol(key.protocol) if destination.nat64 else key.protocol
        reply = Key(destination.address, source.address, dport, source.port, protocol, zone)
        if reply not in sessions.entries:
            break
    else:
        if not choice.vpp and (packet.has_ports or packet.is_query):
            machine.count_pool(choice.tag, refused=1)
        raise drop(Reason.NAT_EXHAUSTED)
    reverse, forward = (
        _entry(machine, way, to_zone, decision, choice.rule, destination.rule, translated=choice.translates)
        for _ in range(2)
    )
    for entry in (reverse, forward):
        if destination.nat64:
            entry.flags |= SessionFlag.NAT64
            entry.embedded = destination.nat64.prefix.prefixlen
        entry.embedded = choice.tag or entry.embedded
        entry.flags |= SessionFlag.TRANSLATOR if choice.vpp else 0
    reverse.src, reverse.dst, reverse.sport, reverse.dport = key.dst, key.src, key.dport, key.sport
    reverse.out_zone = key.zone
    reverse.flags |= SessionFlag.REVERSE
    forward.src, forward.dst, forward.sport, forward.dport = source.address, destination.address, source.port, dport
    forward.out_zone = zone
    forward.packets, forward.octets = 1, packet.length
    forward.flags |= SessionFlag.TO_SELF if to_zone == SELF else 0
    if packet.protocol == TCP and packet.flags & ACK:
        forward.ack = packet.ack
        forward.flags |= SessionFlag.ACKED
    if not sessions.insert(reply, reverse):
        raise drop(Reason.SESSIONS_FULL)
    if way.egress is not None and forward.flags & SessionFlag.NAT:
        protected = protecting(machine.tunnels, PolicyDirection.OUT, becomes(packet, key, source, destination))
        if bool(protected) != way.egress.tunnel:
            del sessions.entries[reply]
            raise drop(Reason.TUNNEL_NAT)
    if not sessions.insert(key, forward):
        del sessions.entries[reply]
        raise drop(Reason.SESSIONS_FULL)
    for rule in (decision.rule, destination.rule, choice.rule):
        machine.count(rule, packet)
    return forward


def _entry(
    machine: Machine, way: Way, to_zone: str, decision: Decision, snat_rule: int, dnat_rule: int, *, translated: bool
) -> Entry:
    """What both directions have in common."""
    packet = way.packet
    opening = packet.protocol == TCP and packet.flags & SYN
    state = State.OPENING if opening else State.ESTABLISHED
    flags = SessionFlag.LOG_CLOSE if decision.log_close else 0
    if dnat_rule or translated:
        flags |= SessionFlag.NAT
    caps = [machine.zones[name].tcp_mss for name in (way.port.zone, to_zone) if name != SELF]
    return Entry(
        state=state,
        timeout=machine.sessions.seconds(state, packet.protocol, decision.timeout, is_icmp=packet.is_icmp),
        flags=flags,
        mss=min((cap for cap in caps if cap), default=0),
        app_timeout=decision.timeout,
        rule=decision.rule,
        snat_rule=snat_rule,
        dnat_rule=dnat_rule,
        last_seen_ns=way.now,
    )
