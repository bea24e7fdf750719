"""More XFRM notifications than a listener's socket holds, about a policy that concerns nobody."""

from __future__ import annotations

import ipaddress
import socket
import struct

from ipsec_gw.errors import XfrmError
from ipsec_gw.lab.kernel_sas import HEADER, NETLINK_XFRM, NLM_F_REQUEST, NLMSG_ERROR, messages
from ipsec_gw.lab.netns import inside

XFRM_MSG_DELPOLICY, XFRM_MSG_UPDPOLICY = 0x14, 0x19
"""linux/xfrm.h."""

_NLM_F_ACK = 0x4
_POLICY_OUT, _ALLOW = 1, 0
_ENDS = ("203.0.113.1", "203.0.113.2")
"""For documentation (RFC 5737)."""

_AT_A_TIME = 64


def _selector() -> bytes:
    """``struct xfrm_selector`` of both addresses."""
    source, destination = (ipaddress.IPv4Address(end).packed.ljust(16, b"\0") for end in _ENDS)
    return destination + source + struct.pack(">HHHH", 0, 0, 0, 0) + struct.pack("=HBBBxxxiI", 2, 32, 32, 0, 0, 0)


def _policy() -> bytes:
    """``struct xfrm_userpolicy_info`` without limits."""
    limits = b"\xff" * 32 + bytes(32)
    return _selector() + limits + bytes(32) + struct.pack("=IIBBBB4x", 0, 0, _POLICY_OUT, _ALLOW, 0, 0)


def _policy_id() -> bytes:
    """``struct xfrm_userpolicy_id``."""
    return _selector() + struct.pack("=IB3x", 0, _POLICY_OUT)


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, NLM_F_REQUEST | flags, 0, 0) + body


def make_noise(namespace: str, times: int) -> None:
    """Replace such a policy of a namespace so many times, and remove it. Raises XfrmError."""
    with inside(namespace):
        sender = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_XFRM)
    with sender:
        sender.bind((0, 0))
        for begin in range(0, times, _AT_A_TIME):
            count = min(_AT_A_TIME, times - begin)
            quiet = _message(XFRM_MSG_UPDPOLICY, 0, _policy()) * (count - 1)
            _ask(sender, quiet + _message(XFRM_MSG_UPDPOLICY, _NLM_F_ACK, _policy()))
        _ask(sender, _message(XFRM_MSG_DELPOLICY, _NLM_F_ACK, _policy_id()))


def _ask(sender: socket.socket, datagram: bytes) -> None:
    sender.send(datagram)
    for kind, body in messages(sender.recv(1 << 16)):
        code = -struct.unpack_from("=i", body)[0] if kind == NLMSG_ERROR else 0
        if code:
            raise XfrmError(f"the kernel refused a policy (errno {code})")
