"""The gateway's own XFRM policies: by what they are recognised, and as messages.

They let IPv6 pass without IPsec that comes out of a device or carries a mark, for any addresses. charon never sees
them: it keeps its own list of policies and asks the kernel for those alone. The kernel numbers policies from 8 upwards,
ours have a number that they ask for (``struct xfrm_userpolicy_info``).
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass

from ipsec_gw.ike.messages import UserPolicyId, UserPolicyInfo, XfrmMessage
from ipsec_gw.model.snapshot import PolicyDirection

_FIRST_INDEX, _INDICES = 0x6967_0000, 0x1_0000
_DIRECTIONS = {PolicyDirection.IN: 0, PolicyDirection.OUT: 1, PolicyDirection.FWD: 2}
_UNTIL_FOREVER = 0xFFFF_FFFF_FFFF_FFFF
_WHOLE_MARK = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class OwnPolicy:
    """IPv6 passes in this direction: if it leaves by the device ``ifindex``, or if it has exactly this ``mark``.

    One of both is 0. A device says something about outbound packets only: for the others the kernel compares it with
    the device that they leave by.
    """

    direction: PolicyDirection
    ifindex: int = 0
    mark: int = 0

    @property
    def index(self) -> int:
        """The number of the policy; its lowest three bits are the direction (``xfrm_policy.c``)."""
        return _FIRST_INDEX | _DIRECTIONS[self.direction]


def parse_own(message: XfrmMessage) -> OwnPolicy | None:
    """One of ours from an answer to GETPOLICY, None for any other policy. Raises ValueError for a broken one."""
    if not _FIRST_INDEX <= int(message["index"]) < _FIRST_INDEX + _INDICES:
        return None
    message.check()
    direction = next((d for d, number in _DIRECTIONS.items() if number == int(message["dir"])), None)
    attributes = {slot[0]: slot[1] for slot in message.get("attrs", ())}
    if direction is None or "XFRMA_TMPL" in attributes:
        return None
    raw = attributes.get("XFRMA_MARK")
    return OwnPolicy(direction, int(message["sel_ifindex"]), struct.unpack_from("=I", raw)[0] if raw else 0)


def put_message(policy: OwnPolicy) -> UserPolicyInfo:
    """NEWPOLICY or UPDPOLICY: allow, before all others, for ever."""
    message = UserPolicyInfo()
    _fill(message, policy)
    for name, _ in UserPolicyInfo.fields:
        if name.startswith("lft_"):
            message[name] = _UNTIL_FOREVER if name.endswith(("_byte", "_packet")) else 0
        elif name.startswith("cur_"):
            message[name] = 0
    for name in ("priority", "action", "flags", "share"):
        message[name] = 0
    message["info_pad"] = bytes(4)
    return message


def id_message(policy: OwnPolicy) -> UserPolicyId:
    """GETPOLICY and DELPOLICY, by selector and mark."""
    message = UserPolicyId()
    _fill(message, policy)
    message["index"] = 0
    message["id_pad"] = bytes(3)
    return message


def _fill(message: XfrmMessage, policy: OwnPolicy) -> None:
    for name, kind in UserPolicyId.fields:
        if name.startswith("sel_"):
            message[name] = bytes(int(kind[:-1])) if kind.endswith("s") else 0
    message["sel_family"] = socket.AF_INET6
    message["sel_ifindex"] = policy.ifindex
    message["index"] = policy.index
    message["dir"] = _DIRECTIONS[policy.direction]
    if policy.mark:
        message["attrs"] = [("XFRMA_MARK", struct.pack("=II", policy.mark, _WHOLE_MARK))]
