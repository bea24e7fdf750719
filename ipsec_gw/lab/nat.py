"""A NAT router in a namespace: nftables masquerades, and forgets all mappings when it is told to use other ports."""

from __future__ import annotations

import os
import socket
import struct
from dataclasses import dataclass

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.netns import inside
from ipsec_gw.lab.process import need_tools, run

RULES = """\
table ip lab {{}}
delete table ip lab
table ip lab {{
  chain post {{
    type nat hook postrouting priority 100; policy accept;
    oifname "{outside}" ip protocol udp masquerade to :{first}-{last}
    oifname "{outside}" masquerade
  }}
}}
"""
"""Made anew as a whole, by one transaction."""

NETLINK_NETFILTER = 12
CTNETLINK_DELETE = 1 << 8 | 2
"""``NFNL_SUBSYS_CTNETLINK`` and ``IPCTNL_MSG_CT_DELETE`` (``linux/netfilter/nfnetlink_conntrack.h``)."""

NLM_F_REQUEST, NLM_F_ACK = 1, 4
HEADER = struct.Struct("=IHHII")
NFGENMSG = struct.Struct("=BBH")
ERROR = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Nat:
    """The router in ``namespace``, its WAN side on ``outside``."""

    namespace: str
    outside: str

    async def use(self, ports: range) -> None:
        """Map UDP to these source ports, and everything that is under way anew.

        Raises EnvironmentMissing without nftables, CommandFailed and IpsecGwError.
        """
        need_tools({"nft": "nftables"})
        rules = RULES.format(outside=self.outside, first=ports.start, last=ports.stop - 1)
        await run(["nft", "-f", "-"], namespace=self.namespace, stdin=rules)
        self._forget()

    def _forget(self) -> None:
        """What `conntrack -F` does: without attributes, the request means all connections."""
        with inside(self.namespace):
            link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        with link:
            body = NFGENMSG.pack(socket.AF_UNSPEC, 0, 0)
            flags = NLM_F_REQUEST | NLM_F_ACK
            link.settimeout(10.0)
            link.send(HEADER.pack(HEADER.size + len(body), CTNETLINK_DELETE, flags, 1, 0) + body)
            (code,) = ERROR.unpack_from(link.recv(4096), HEADER.size)
        if code:
            raise IpsecGwError(f"{self.namespace}: connections cannot be forgotten: {os.strerror(-code)}")
