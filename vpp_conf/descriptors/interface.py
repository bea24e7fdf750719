"""What all interfaces of VPP share: listing, tags, tables, MTU, state."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from vpp_conf.api import VppApi
from vpp_conf.startup.values import RxMode

OWNER_TAG = "ipsec-gw"
"""Interface tag of everything that the gateway made; interfaces without it are somebody else's."""

RX_MODES = {RxMode.POLLING: 1, RxMode.INTERRUPT: 2}
"""``RX_MODE_API_POLLING``, ``RX_MODE_API_INTERRUPT``."""

UP_FLAG = 1
"""``IF_STATUS_API_FLAG_ADMIN_UP``."""


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as VPP lists it."""

    sw_if_index: int
    name: str
    kind: str
    tag: str


async def interfaces(api: VppApi) -> Mapping[int, Interface]:
    """All interfaces by ``sw_if_index``."""
    details = await api.dump("sw_interface_dump")
    return {
        detail.sw_if_index: Interface(detail.sw_if_index, detail.interface_name, detail.interface_dev_type, detail.tag)
        for detail in details
    }


async def named(api: VppApi, name: str) -> Interface | None:
    """An interface, whoever made it."""
    return next((interface for interface in (await interfaces(api)).values() if interface.name == name), None)


async def tag(api: VppApi, sw_if_index: int, text: str) -> None:
    """Put the owner's tag on an interface."""
    await api.call("sw_interface_tag_add_del", is_add=True, sw_if_index=sw_if_index, tag=text)


async def bring_up(api: VppApi, sw_if_index: int, table: int, mtu: int) -> None:
    """Bind to a table of both IP versions (before any address), set the L3 MTU in bytes, admin up.

    Each version works only once the interface has an address of it or borrows one (:func:`borrow_address`). The message
    that should enable IPv4 without (sw_interface_ip4_enable_disable) does the contrary in 26.06.
    """
    for version in (4, 6):
        await bind(api, sw_if_index, table, version)
    await api.call("sw_interface_set_mtu", sw_if_index=sw_if_index, mtu=[mtu, 0, 0, 0])
    await api.call("sw_interface_set_flags", sw_if_index=sw_if_index, flags=UP_FLAG)


async def bind(api: VppApi, sw_if_index: int, table: int, version: int) -> None:
    """Have packets of an IP version looked up in this table. Not once the interface has an address of that version."""
    await api.call("sw_interface_set_table", sw_if_index=sw_if_index, is_ipv6=version == 6, vrf_id=table)


async def borrow_address(api: VppApi, sw_if_index: int, lender: int) -> None:
    """Make an interface capable of IP by the addresses of another one."""
    await api.call("sw_interface_set_unnumbered", sw_if_index=lender, unnumbered_sw_if_index=sw_if_index, is_add=True)


async def keep_silent(api: VppApi, sw_if_index: int) -> None:
    """No router advertisements: the kernel speaks for the interface. It must have IPv6."""
    await api.call("sw_interface_ip6nd_ra_config", sw_if_index=sw_if_index, suppress=1)


class Borrower(Protocol):
    """A tunnel's interface; :class:`~vpp_conf.descriptors.ipsec_itf.IpsecInterface` says what these are."""

    @property
    def sw_if_index(self) -> int: ...

    @property
    def table(self) -> int: ...

    @property
    def mtu(self) -> int: ...

    @property
    def lender(self) -> int: ...


Made = TypeVar("Made", bound=Borrower)


async def take_in(api: VppApi, made: Made, remove: Callable[[Made], Awaitable[None]]) -> None:
    """Make a tunnel's interface that has just been created one of the gateway's: tagged, up in its FIB, with an address
    of another interface's. If VPP refuses any of that, remove it.
    """
    try:
        await tag(api, made.sw_if_index, OWNER_TAG)
        await bring_up(api, made.sw_if_index, made.table, made.mtu)
        await borrow_address(api, made.sw_if_index, made.lender)
    except BaseException:
        await remove(made)
        raise
