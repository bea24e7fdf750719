"""Gateways with connections as the matrix writes them, which may change while tunnels are up."""

from __future__ import annotations

from dataclasses import dataclass

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.matrix.case import Case, Connection
from ipsec_gw.lab.matrix.ends import PLACES, End
from ipsec_gw.lab.scenarios.tunnel import Story, Talkers
from ipsec_gw.lab.topology import Role
from ipsec_gw.lab.traffic import Host

GATEWAYS = (Role.GATEWAY_A, Role.GATEWAY_B)


@dataclass(frozen=True, slots=True)
class Configured:
    """A gateway and its swanctl.conf."""

    identity: str
    namespace: str
    text: str

    def conf(self) -> str:
        """Its swanctl.conf."""
        return self.text


def configured(lab: Lab, role: Role, *connections: Connection) -> Configured:
    """Gateway A or B with these connections."""
    return Configured(role, lab.topology.namespace(role), Case("", "", connections, ()).conf(role))


def both(lab: Lab, *connections: Connection) -> tuple[Configured, Configured]:
    """Both gateways with them."""
    return configured(lab, Role.GATEWAY_A, *connections), configured(lab, Role.GATEWAY_B, *connections)


async def load(story: Story, *connections: Connection, command: str = "--load-all") -> None:
    """Both gateways take these connections, B first: a trap or a start at A may need them at once."""
    a, b = both(story.lab, *connections)
    await story.b.reconfigure(b, command)
    await story.a.reconfigure(a, command)


def talkers(lab: Lab, client: End, server: End) -> Talkers:
    """Two ends of the matrix, and gateway A's inner address, with IPv4."""
    return Talkers(_host(lab, client), _host(lab, server), _host(lab, End.GATEWAY_A))


def _host(lab: Lab, end: End) -> Host:
    place = PLACES[end]
    return Host(lab.topology.namespace(place.role), place.address(4))
