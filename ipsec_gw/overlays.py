"""VXLAN devices over transport mode, for people: who does what of what they send. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping

from ipsec_gw.desired import Owner, SaVerdict
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.objects import ObjectKey, XfrmInterface
from ipsec_gw.model.snapshot import PolicyDirection, Snapshot, Vxlan, XfrmPolicy
from ipsec_gw.vxlans import sent_by

_SOON = "the engine is to do that, and does not yet"


def overlay_words(
    snapshot: Snapshot,
    verdicts: Iterable[SaVerdict],
    kept: Mapping[XfrmInterface, str],
    in_place: Container[ObjectKey],
    engine: EngineName,
) -> tuple[str, ...]:
    """A sentence for every device that sends by an SA. ``kept`` tells why the kernel does VXLAN for some of them; for
    others the engine does, if what leads their frames to it is ``in_place``.
    """
    by_sa = {verdict.sa.key: verdict for verdict in verdicts}
    return tuple(
        f"{device}: {_work(by_sa[key], engine, _why_kept(device, kept, in_place))}"
        for device in snapshot.vxlans
        for key in _sends_with(device, snapshot)
        if key in by_sa
    )


def _why_kept(device: Vxlan, kept: Mapping[XfrmInterface, str], in_place: Container[ObjectKey]) -> str:
    return kept.get(device.interface) or ("" if device.interface in in_place else _SOON)


def _work(verdict: SaVerdict, engine: EngineName, why_kept: str) -> str:
    match verdict.owner:
        case Owner.ENGINE:
            return (
                f"the kernel does VXLAN ({why_kept}), {engine} does ESP" if why_kept else f"{engine} does VXLAN and ESP"
            )
        case Owner.KERNEL:
            return f"the kernel does VXLAN and ESP ({verdict.reason})"
        case Owner.PENDING:
            return f"the kernel does VXLAN, and ESP until it is decided ({verdict.reason})"


def _sends_with(device: Vxlan, snapshot: Snapshot) -> tuple[SaKey, ...]:
    """The SA of the policy that has all it may send, whatever port it comes from: the first that XFRM would try."""
    fitting = sorted(_policies(device, snapshot), key=lambda policy: (policy.priority, policy.index))
    return tuple(SaKey(device.remote, template.spi) for policy in fitting[:1] for template in policy.templates)


def _policies(device: Vxlan, snapshot: Snapshot) -> Iterator[XfrmPolicy]:
    """Of a device without an address of its own, those that have all it may send from where they are for."""
    return (
        policy
        for policy in snapshot.policies
        if policy.direction is PolicyDirection.OUT and policy.selector.covers(sent_by(device, policy.source))
    )
