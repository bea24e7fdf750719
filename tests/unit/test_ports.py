"""What the firewall is told of its interfaces, from the kernel's own messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from ipsec_gw.mirror import ports
from xdp_steer.compile.rows import PortInfo

HARDWARE = {"eth0", "eth1"}
LINKS = (
    {"ifname": "eth0", "index": 2, "ifi_type": 1},
    {"ifname": "eth1", "index": 3, "ifi_type": 1},
    {"ifname": "eth0.20", "index": 9, "ifi_type": 1, "link": 2, "linkinfo": {"kind": "vlan", "data": {"vlan_id": 20}}},
    {"ifname": "veth0", "index": 5, "ifi_type": 1, "link": 6, "linkinfo": {"kind": "veth", "data": {}}},
    {"ifname": "ppp0", "index": 7, "ifi_type": 512},
)


class Route:
    """The kernel's answers."""

    async def get_links(self) -> AsyncIterator[dict[str, Any]]:
        return _one_by_one(LINKS)

    async def get_addr(self) -> AsyncIterator[dict[str, Any]]:
        return _one_by_one(())


async def _one_by_one(messages: tuple[dict[str, Any], ...]) -> AsyncIterator[dict[str, Any]]:
    for message in messages:
        yield message


@pytest.fixture(autouse=True)
def _devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "has_device", HARDWARE.__contains__)


async def infos(generic: frozenset[int] = frozenset(), kept: frozenset[str] = frozenset()) -> dict[str, PortInfo]:
    names = [link["ifname"] for link in LINKS]
    return await ports.port_infos(Route(), names, generic.__contains__, kept)  # type: ignore[arg-type]


async def test_p18_packets_are_redirected_only_to_drivers_that_send_them() -> None:
    """A veth without a program at its other end drops them all."""
    assert [name for name, info in (await infos()).items() if info.redirect] == ["eth0", "eth1", "eth0.20"]


async def test_p1_generic_xdp_of_one_interface_is_no_fact_of_another() -> None:
    """Where XDP is generic, checksums may be left to hardware."""
    found = await infos(generic=frozenset({3}))
    assert [name for name, info in found.items() if info.partial] == ["eth1", "veth0", "ppp0"]
    assert [name for name, info in found.items() if info.redirect] == ["eth0", "eth1", "eth0.20"]


async def test_what_the_kernel_may_want_to_encrypt_it_sends_itself() -> None:
    found = await infos(kept=frozenset({"eth0"}))
    assert [name for name, info in found.items() if info.redirect] == ["eth1"]


async def test_p19_a_vlan_comes_in_by_the_interface_below() -> None:
    """XDP is attached to that one alone, with the mode of that one."""
    tagged = (await infos())["eth0.20"]
    assert (tagged.ifindex, tagged.l3_ifindex, tagged.vid, tagged.vlan) == (2, 9, 20, True)
    assert (await infos(generic=frozenset({2})))["eth0.20"].partial


async def test_p17_an_interface_without_ethernet_is_known_as_one() -> None:
    assert [name for name, info in (await infos()).items() if not info.ethernet] == ["ppp0"]
