"""Snapshots of a kernel that changes while one looks at it, and of what is not an SA yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ipsec_gw.desired import desired
from ipsec_gw.ike.observer import Observer
from ipsec_gw.ike.xfrm import XfrmMonitor, XfrmSocket
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.mirror.links import Links
from ipsec_gw.model.ids import IpAddress, SaKey
from ipsec_gw.model.objects import Tunnel
from ipsec_gw.model.snapshot import NO_ALGORITHM, ResolvedHop, XfrmPolicy, XfrmSa
from tests.support.world import LOCAL, OFFER, REMOTE, SETTINGS, established, policy, sa

NEVER_STEADY = 5


class Busy:
    """A kernel that changes under the first ``disturbed`` dumps, the policies of which are given."""

    def __init__(self, sas: Sequence[XfrmSa], dumps: Sequence[Sequence[XfrmPolicy]], disturbed: int) -> None:
        self._sas, self._dumps, self._disturbed = list(sas), list(dumps), disturbed
        self.changes = 0
        self.asked: dict[IpAddress, IpAddress | None] = {}
        self.names = 0

    def sas(self) -> list[XfrmSa]:
        return self._sas

    def policies(self) -> list[XfrmPolicy]:
        self._disturbed -= 1
        return list(self._dumps.pop(0))

    def drain(self) -> None:
        self.changes += self._disturbed >= 0

    async def addresses(self) -> frozenset[IpAddress]:
        return frozenset({LOCAL, ip_address("10.0.0.7")})

    async def links(self) -> Links:
        return Links(())

    async def next_hops(self, ends: dict[IpAddress, IpAddress | None], _links: Links) -> dict[IpAddress, ResolvedHop]:
        self.asked = ends
        return {peer: ResolvedHop("wan0", peer, "02:00:00:00:00:01", 1500, source) for peer, source in ends.items()}

    async def source_hints(self) -> dict[Any, Any]:
        return {}

    async def child_names(self) -> dict[int, Any]:
        self.names += 1
        return {}

    def observer(self) -> Observer:
        return Observer(
            cast(XfrmSocket, self),
            cast(XfrmMonitor, self),
            cast(KernelView, self),
            cast(Any, SimpleNamespace(child_names=self.child_names, version="")),
            names_decide=True,
            named=lambda: None,
        )


def numbered(index: int, spi: int, reqid: int) -> XfrmPolicy:
    one = policy(spi, index=index, destination=ip_network(f"192.168.{reqid}.0/24"))
    return replace(one, templates=tuple(replace(each, reqid=reqid) for each in one.templates))


async def test_a_policy_that_moves_while_the_dump_goes_on_is_not_gone() -> None:
    """A rekey moves it to the front, where the dump has been. Its tunnel would be taken down and built again."""
    first, second, newer = numbered(1, 0x22, 1), numbered(9, 0x33, 2), numbered(1, 0x44, 1)
    dumps = [[first, second], [second], [newer], [second], [newer, second]]
    kernel = Busy([sa(0x11, inbound=True), sa(0x44)], dumps, disturbed=NEVER_STEADY)
    assert (await kernel.observer().snapshot()).policies == (newer, second)


async def test_what_has_gone_is_gone_as_soon_as_nothing_changes() -> None:
    first, second = numbered(1, 0x22, 1), numbered(9, 0x33, 2)
    kernel = Busy([], [[first, second], [second]], disturbed=1)
    assert (await kernel.observer().snapshot()).policies == (second,)


async def test_an_spi_that_charon_has_reserved_is_no_sa() -> None:
    larval = replace(sa(0x77, inbound=True), aead=None, algorithm=NO_ALGORITHM, reqid=0)
    acquired = replace(larval, key=SaKey(REMOTE, 0), reqid=3)
    kernel = Busy([larval, acquired], [[]], disturbed=0)
    assert (await kernel.observer().snapshot()).sas == ()
    assert kernel.names == 0, "charon has no name for it"


@pytest.mark.parametrize("second", ["10.0.0.7", "10.0.0.1"])
async def test_the_way_to_a_peer_is_asked_for_from_our_own_end(second: str) -> None:
    """By two providers: the route is another one for each of our addresses, and an engine has one for a peer."""
    other = ip_address(second)
    sas = [sa(0x11, inbound=True), sa(0x22)]
    sas += [replace(sa(0x33), source=other, reqid=2), sa(0x44, inbound=True, reqid=2, key=SaKey(other, 0x44))]
    kernel = Busy(sas, [[numbered(1, 0x22, 1), numbered(9, 0x33, 2)]], disturbed=0)
    seen = await kernel.observer().snapshot()
    assert kernel.asked == {REMOTE: LOCAL}
    found = desired(OFFER, SETTINGS, seen)
    tunnels = {one.key.reqid for one in found.objects.values() if isinstance(one, Tunnel)}
    assert tunnels == ({1} if other != LOCAL else {1, 2})
    why = {verdict.reason for verdict in found.verdicts if verdict.sa.reqid == 2}
    assert why == (
        {f"other tunnels to {REMOTE} begin at {LOCAL}, and engines have one beginning for a peer"}
        if other != LOCAL
        else {""}
    )


async def test_an_address_that_is_ours_no_more_is_no_beginning() -> None:
    """Of a tunnel that charon has not given up yet: the others must not wait for it."""
    gone = ip_address("10.0.0.0")
    kernel = Busy([sa(0x22), replace(sa(0x33), source=gone, reqid=2)], [[], []], disturbed=0)
    observer = kernel.observer()
    await observer.snapshot()
    assert kernel.asked == {REMOTE: LOCAL}
    del kernel.sas()[0]
    await observer.snapshot()
    assert kernel.asked == {REMOTE: None}


def test_a_tunnel_with_two_beginnings_stays_in_the_kernel() -> None:
    """A second provider's SAs for the same networks have the same reqid."""
    state = established()
    beside = replace(sa(0x55), source=ip_address("10.0.0.7"))
    found = desired(OFFER, SETTINGS, replace(state, sas=(*state.sas, beside)))
    assert {verdict.reason for verdict in found.verdicts} == {
        "its SAs have several addresses of this machine (10.0.0.1, 10.0.0.7)"
    }
