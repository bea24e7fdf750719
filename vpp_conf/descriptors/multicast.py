"""Multicast in a table (``vnet/mfib``, ``vnet/ip/ip_local.c``): to the punt path, where redirects send it on.

A packet for a group does not meet an interface's input checks. An entry for all groups hands it to the local stack of
VPP, which has no use for it and punts it, UDP too if it is told so (``set_punt``); a redirected packet keeps its TTL.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

from vpp_conf.descriptors.base import NO_INDEX, Descriptor, to_address, to_path

ALL_GROUPS = {4: ip_network("224.0.0.0/4"), 6: ip_network("ff00::/8")}

ACCEPT_ALL = 0x8
"""``MFIB_API_ENTRY_FLAG_ACCEPT_ALL_ITF``: from whichever interface."""

FORWARD = 0x4
"""``MFIB_API_ITF_FLAG_FORWARD``."""

LOCAL = 1
"""``FIB_API_PATH_TYPE_LOCAL``."""

_PUNT_L4, _UDP, _ALL_PORTS = 0, 17, 0xFFFF
"""``PUNT_API_TYPE_L4``, and every port that nothing in VPP listens on."""


@dataclass(frozen=True, slots=True)
class Groups:
    """All multicast of an IP version in a table."""

    table: int
    version: int


class GroupsDescriptor(Descriptor[Groups]):
    """Multicast that is punted. Making it again is no error."""

    kind = "groups"

    async def create(self, value: Groups) -> Groups:
        await self._add_del(value, is_add=True)
        await self._api.call("set_punt", is_add=True, punt=_punt(value.version))
        return value

    async def delete(self, value: Groups) -> None:
        await self._add_del(value, is_add=False)

    async def retrieve(self) -> tuple[Groups, ...]:
        """VPP's own entries look the same: what is there is made again instead."""
        return ()

    async def _add_del(self, value: Groups, *, is_add: bool) -> None:
        groups = ALL_GROUPS[value.version]
        address = to_address(groups.network_address)
        any_source = {f"ip{value.version}": bytes(groups.max_prefixlen // 8)}
        await self._api.call(
            "ip_mroute_add_del",
            is_add=is_add,
            is_multipath=False,
            route={
                "table_id": value.table,
                "entry_flags": ACCEPT_ALL,
                "rpf_id": 0,
                "prefix": {
                    "af": address["af"],
                    "grp_address_length": groups.prefixlen,
                    "grp_address": address["un"],
                    "src_address": any_source,
                },
                "n_paths": 1,
                "paths": [{"itf_flags": FORWARD, "path": to_path(value.version, NO_INDEX) | {"type": LOCAL}}],
            },
        )


def _punt(version: int) -> dict[str, object]:
    l4 = {"af": 0 if version == 4 else 1, "protocol": _UDP, "port": _ALL_PORTS}
    return {"type": _PUNT_L4, "punt": {"l4": l4}}
