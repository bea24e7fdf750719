"""VXLAN devices over transport mode, for people: who does what of what they send. Pure.

Their packets are UDP of this machine's own, which an engine encrypts as such (:mod:`ipsec_gw.hosts`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_network

from ipsec_gw.desired import Owner, SaVerdict
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.objects import PortMatch, Selector
from ipsec_gw.model.snapshot import PolicyDirection, Snapshot, Vxlan, XfrmPolicy

_UDP, _ONE_PORT = 17, 0xFFFF


def overlay_words(snapshot: Snapshot, verdicts: Iterable[SaVerdict], engine: EngineName) -> tuple[str, ...]:
    """A sentence for every device that sends by an SA."""
    by_sa = {verdict.sa.key: verdict for verdict in verdicts}
    return tuple(
        f"VXLAN device {device.name}: {_work(by_sa[key], engine)}"
        for device in snapshot.vxlans
        for key in _sends_with(device, snapshot)
        if key in by_sa
    )


def _work(verdict: SaVerdict, engine: EngineName) -> str:
    match verdict.owner:
        case Owner.ENGINE:
            return f"the kernel does VXLAN, {engine} does ESP"
        case Owner.KERNEL:
            return f"the kernel does VXLAN and ESP ({verdict.reason})"
        case Owner.PENDING:
            return f"the kernel does VXLAN, and ESP until it is decided ({verdict.reason})"


def _sends_with(device: Vxlan, snapshot: Snapshot) -> tuple[SaKey, ...]:
    """The SA of the policy that has all it may send, whatever port it comes from: the first that XFRM would try."""
    fitting = sorted(_policies(device, snapshot), key=lambda policy: (policy.priority, policy.index))
    return tuple(SaKey(device.remote, template.spi) for policy in fitting[:1] for template in policy.templates)


def _policies(device: Vxlan, snapshot: Snapshot) -> Iterator[XfrmPolicy]:
    for policy in snapshot.policies:
        if policy.direction is not PolicyDirection.OUT:
            continue
        source = policy.source if device.local is None else ip_network(device.local)
        sent = Selector(source, ip_network(device.remote), _UDP, destination_port=PortMatch(device.port, _ONE_PORT))
        if policy.selector.covers(sent):
            yield policy
