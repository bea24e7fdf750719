"""Which IPsec SA carries a session of the firewall: the kernel's policies, asked about its packets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network

from ipsec_gw.desired import SaVerdict
from ipsec_gw.model.ids import Direction, EngineName
from ipsec_gw.model.objects import PortMatch, Selector
from ipsec_gw.model.snapshot import ChildName, PolicyDirection, XfrmPolicy
from ipsec_gw.observe.views import owner_name
from xdp_steer.sessions import Flow, Session

NO_ENGINE = "xdp"
"""What forwards a session that goes into no tunnel."""


@dataclass(frozen=True, slots=True)
class Carrier:
    """Of a session: ``engine`` is who has the outbound SA, ``tunnel`` its connection and child, ``spi`` in hexadecimal.
    The last two are empty while no SA is there.
    """

    engine: str
    tunnel: str = ""
    spi: str = ""


class Carriers:
    """Of one moment. ``zones`` are numbers of the zones that tunnels are in; without them no session is in a tunnel."""

    def __init__(
        self,
        policies: Iterable[XfrmPolicy],
        verdicts: Iterable[SaVerdict],
        names: Mapping[int, ChildName],
        engine: EngineName,
        zones: frozenset[int],
    ) -> None:
        outbound = (policy for policy in policies if policy.direction is PolicyDirection.OUT)
        self._policies = sorted(outbound, key=lambda policy: policy.priority)
        self._verdicts = {v.sa.key.spi: v for v in verdicts if v.direction is Direction.OUT}
        self._by_reqid = {verdict.sa.reqid: verdict for verdict in self._verdicts.values()}
        self._names = names
        self._engine = engine
        self.zones = zones

    def of(self, session: Session) -> Carrier | None:
        """None for a session that goes into no tunnel."""
        flow = self._outward(session)
        if flow is None:
            return None
        packet = selector_of(flow)
        policy = next((policy for policy in self._policies if policy.selector.meets(packet)), None)
        if policy is None or not policy.allow or not policy.templates:
            return None
        template = policy.templates[0]
        verdict = self._verdicts.get(template.spi) or self._by_reqid.get(template.reqid)
        if verdict is None:
            return Carrier("kernel")
        name = self._names.get(verdict.sa.key.spi)
        tunnel = f"{name.connection}/{name.child}" if name else ""
        return Carrier(owner_name(verdict.owner, self._engine), tunnel, f"{verdict.sa.key.spi:08x}")

    def _outward(self, session: Session) -> Flow | None:
        """The packets of a session that are encrypted, as they are then: its own, or those that answer them."""
        own, became = session.flow, session.translated
        if became.zone in self.zones:
            return became
        if own.zone in self.zones:
            ports = became.destination_port, own.source_port
            return Flow(became.destination, own.source, *ports, became.protocol, became.zone)
        return None


def selector_of(flow: Flow) -> Selector:
    """One packet's. Of ICMP a flow has an identifier, not type and code: only selectors without them fit."""
    networks = ip_network(flow.source), ip_network(flow.destination)
    return Selector(
        *networks, flow.protocol, PortMatch(flow.source_port, 0xFFFF), PortMatch(flow.destination_port, 0xFFFF)
    )
