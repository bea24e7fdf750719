"""What lets IPv6 pass by XFRM on the veth pair. For IPv4 ``disable_xfrm`` and ``disable_policy`` of the device do it,
but for what this machine sends to the other end of an SA.

Forwarded packets meet an `out` policy of our own bound to ``ipsecgw-up``, and ``disable_policy`` on the way back.
Packets of this machine's own are routed before XFRM asks which device they leave by: on netfilter's OUTPUT hook those
that IPsec is to transform get a mark, so that they are routed once more, with addresses and device known, and lose
it again behind that. Where no lead takes them they find the same policy as before. Decrypted packets for this machine
are given a mark as they arrive, which an `in` policy of our own asks for: no other packet has it. Packets of IPv4 get
the first of these marks too, if they are for the other end of an SA: by their addresses alone they could not be led
(:mod:`ipsec_gw.ownership.hosts`).

Without the veth pair's route everything here is idle and XFRM protects as ever, with or without a daemon.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.ike.own import OwnPolicy
from ipsec_gw.ike.xfrm import XfrmSocket
from ipsec_gw.mirror.nftables import (
    META_IIFNAME,
    META_MARK,
    Chain,
    NfTables,
    Table,
    equals,
    meta,
    set_mark,
)
from ipsec_gw.model.snapshot import LeadLimits, PolicyDirection, XfrmPolicy
from ipsec_gw.ownership.marks import AGAIN_MARK, again, hosts_table
from ipsec_gw.ownership.uplink import KERNEL_END

ARRIVED_MARK = 0x6967_7769
"""Of decrypted packets for this machine: a number that nobody else has."""

_HOOK_IN, _HOOK_AFTER = 1, 4
_FIRST, _MANGLE = -300, -150
_IFNAMSIZ = 16
_FORWARDING = Path("/proc/sys/net/ipv6/conf/all/forwarding")


def _mark(value: int) -> bytes:
    return struct.pack("=I", value)


_DONE = Chain("done", "filter", _HOOK_AFTER, _MANGLE, ((meta(META_MARK), equals(_mark(AGAIN_MARK)), *set_mark(0)),))

TABLE4 = Table("ipsec-gw", (again([]), _DONE), version=4)
"""Between hosts; what gets the mark is in a table of its own (:func:`ipsec_gw.ownership.marks.hosts_table`)."""

TABLE = Table(
    "ipsec-gw",
    (
        Chain(
            "arrived",
            "filter",
            _HOOK_IN,
            _FIRST,
            (
                (
                    meta(META_IIFNAME),
                    equals(KERNEL_END.encode().ljust(_IFNAMSIZ, b"\0")),
                    *set_mark(ARRIVED_MARK),
                ),
            ),
        ),
        # The kernel's own answers may reflect the mark of the question (fwmark_reflect).
        again([0, ARRIVED_MARK]),
        _DONE,
    ),
)


class Bypass:
    """Keeps it in place. ``kernel_index`` is the interface index of ``ipsecgw-up``."""

    def __init__(self, kernel: XfrmSocket, kernel_index: int) -> None:
        self._kernel = kernel
        self._swept = False
        self._wanted = frozenset(
            {
                OwnPolicy(PolicyDirection.OUT, ifindex=kernel_index),
                OwnPolicy(PolicyDirection.IN, mark=ARRIVED_MARK),
            }
        )

    def limits(self, policies: Sequence[XfrmPolicy]) -> LeadLimits:
        """The same for all that ``policies`` ask for: IPv6, and what the ends of SAs say to each other in IPv4."""
        six = self.ensure(policies) if any(policy.source.version == 6 for policy in policies) else LeadLimits()
        of_ends = any(policy.of_ends for policy in policies if policy.source.version == 4)
        return replace(six, hosts=ensure_hosts(policies)) if of_ends else six

    def ensure(self, policies: Iterable[XfrmPolicy]) -> LeadLimits:
        """Put in place what is missing, and say what cannot be led. ``policies`` are those of others."""
        try:
            self._ensure_policies()
        except IpsecGwError as error:
            return LeadLimits(f"IPv6 cannot pass by XFRM: {error}")
        if odd := next((one for one in policies if one.source.version == 6 and _minds_the_mark(one)), None):
            with contextlib.suppress(IpsecGwError):
                _remove_table(TABLE)
            return LeadLimits(
                local6="this machine's own IPv6 packets are not led, they would need a mark that means something to the"
                f" policy {odd.source} === {odd.destination}"
            )
        try:
            _ensure_table(TABLE)
        except IpsecGwError as error:
            return LeadLimits(local6=f"this machine's own IPv6 packets cannot pass by XFRM: {error}")
        if not _forwards():
            return LeadLimits(
                local6="IPv6 forwarding is off (net.ipv6.conf.all.forwarding): without an engine this machine's own"
                " packets could not come back to the kernel"
            )
        return LeadLimits()

    def _ensure_policies(self) -> None:
        if not self._swept:
            for stale in self._kernel.own_policies() - self._wanted:
                self._kernel.delete_own(stale)
            self._swept = True
        for policy in self._wanted:
            if not self._kernel.has_own(policy):
                self._kernel.put_own(policy)


def remove_bypass() -> None:
    """Take the table and all policies of ours away, also those of an earlier life. What there cannot be is fine."""
    with contextlib.suppress(IpsecGwError), XfrmSocket() as kernel:
        for policy in kernel.own_policies():
            kernel.delete_own(policy)
    for table in (TABLE, TABLE4, hosts_table((), ())):
        with contextlib.suppress(IpsecGwError):
            _remove_table(table)


def ensure_hosts(policies: Iterable[XfrmPolicy]) -> str:
    """Why what this machine sends to the other end of an SA cannot be led, with the table in place if it can."""
    if odd := next((one for one in policies if one.source.version == 4 and _minds_the_mark(one)), None):
        with contextlib.suppress(IpsecGwError):
            _remove_table(TABLE4)
        ends = f"{odd.source} === {odd.destination}"
        return f"what is between the ends of an SA needs a mark that means something to the policy {ends}"
    try:
        _ensure_table(TABLE4)
    except IpsecGwError as error:
        return f"packets between the ends of an SA cannot pass by XFRM: {error}"
    return ""


def _minds_the_mark(policy: XfrmPolicy) -> bool:
    """It takes packets without a mark and not those that are routed once more, or the other way round."""
    if policy.mark is None or policy.direction is not PolicyDirection.OUT:
        return False
    value, mask = policy.mark
    return (value == 0) is not (AGAIN_MARK & mask == value)


def _remove_table(table: Table) -> None:
    with contextlib.closing(NfTables()) as tables:
        tables.remove(table)


def _ensure_table(table: Table) -> None:
    with contextlib.closing(NfTables()) as tables:
        if not tables.holds(table):
            tables.put(table)


def _forwards() -> bool:
    try:
        return _FORWARDING.read_text(encoding="ascii").strip() != "0"
    except OSError:
        return False
