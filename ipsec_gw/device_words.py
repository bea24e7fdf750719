"""Devices that put packets into other ones, for people: who does what of what they send by an SA. Pure."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping

from ipsec_gw import encapsulated, vxlans
from ipsec_gw.desired import Owner, SaVerdict
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.objects import ObjectKey, Selector, XfrmInterface
from ipsec_gw.model.snapshot import Encapsulator, PolicyDirection, Snapshot, Vxlan, XfrmPolicy

_SOON = "the engine is to do that, and does not yet"
_SHARED = "its SAs are for more than it sends"


def device_words(
    snapshot: Snapshot,
    verdicts: Iterable[SaVerdict],
    kept: Mapping[XfrmInterface, str],
    in_place: Container[ObjectKey],
    engine: EngineName,
) -> tuple[str, ...]:
    """A sentence for every device that sends by an SA. ``kept`` tells why the kernel does the work of some of them; for
    others the engine does, if what leads their packets to it is ``in_place``.
    """
    by_sa = {verdict.sa.key: verdict for verdict in verdicts}
    told: list[str] = []
    devices: tuple[Encapsulator | Vxlan, ...] = (*snapshot.encapsulators, *snapshot.vxlans)
    for device in devices:
        for policy in _first_of(device, snapshot):
            why = kept.get(device.interface) or ("" if device.interface in in_place else _why_not(device, policy))
            told += [f"{device}: {_work(device, by_sa[key], engine, why)}" for key in _sas_of(policy) if key in by_sa]
    return tuple(told)


def _why_not(device: Encapsulator | Vxlan, policy: XfrmPolicy) -> str:
    shared = isinstance(device, Encapsulator) and policy.selector != encapsulated.sent_by(device)
    return _SHARED if shared else _SOON


def _work(device: Encapsulator | Vxlan, verdict: SaVerdict, engine: EngineName, why_kept: str) -> str:
    what = device.interface.kind.name
    match verdict.owner:
        case Owner.ENGINE:
            return (
                f"the kernel does {what} ({why_kept}), {engine} does ESP"
                if why_kept
                else f"{engine} does {what} and ESP"
            )
        case Owner.KERNEL:
            return f"the kernel does {what} and ESP ({verdict.reason})"
        case Owner.PENDING:
            return f"the kernel does {what}, and ESP until it is decided ({verdict.reason})"


def _sas_of(policy: XfrmPolicy) -> tuple[SaKey, ...]:
    return tuple(SaKey(template.destination, template.spi) for template in policy.templates)


def _first_of(device: Encapsulator | Vxlan, snapshot: Snapshot) -> tuple[XfrmPolicy, ...]:
    """The policy that has all it may send, whatever port it comes from: the first that XFRM would try, or none."""
    fitting = sorted(_policies(device, snapshot), key=lambda policy: (policy.priority, policy.index))
    return tuple(fitting[:1])


def _policies(device: Encapsulator | Vxlan, snapshot: Snapshot) -> Iterator[XfrmPolicy]:
    """Of a VXLAN device without an address of its own, those that have all it may send from where they are for."""
    outbound = (policy for policy in snapshot.policies if policy.direction is PolicyDirection.OUT)
    for policy in outbound:
        sent = _sent_by(device, policy)
        if sent is not None and policy.selector.contains(sent):
            yield policy


def _sent_by(device: Encapsulator | Vxlan, policy: XfrmPolicy) -> Selector | None:
    if isinstance(device, Vxlan):
        return vxlans.sent_by(device, policy.source)
    return encapsulated.sent_by(device) if device.up else None
