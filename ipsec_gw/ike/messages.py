"""NETLINK_XFRM messages in pyroute2's nlmsg style (``linux/xfrm.h``; numbers in host order unless ``>``).

Addresses are 16 raw bytes, of which IPv4 uses the first four.
"""

from __future__ import annotations

import struct
from collections import deque
from functools import cache

from pyroute2.netlink import nla, nlmsg

from ipsec_gw.ike.attributes import attributes
from ipsec_gw.netlink import HEADER

XFRM_MSG_NEWSA = 0x10
XFRM_MSG_GETSA = 0x12
XFRM_MSG_NEWPOLICY = 0x13
XFRM_MSG_DELPOLICY = 0x14
XFRM_MSG_GETPOLICY = 0x15
XFRM_MSG_EXPIRE = 0x18
XFRM_MSG_UPDPOLICY = 0x19
XFRM_MSG_NEWAE = 0x1E

XFRMNLGRP_EXPIRE = 2
XFRMNLGRP_SA = 3
XFRMNLGRP_POLICY = 4

XFRM_STATE_NOECN = 1
XFRM_STATE_DECAP_DSCP = 2
XFRM_STATE_NOPMTUDISC = 4
XFRM_STATE_ICMP = 16
XFRM_STATE_ESN = 128

XFRM_SA_XFLAG_DONT_ENCAP_DSCP = 1

_SELECTOR = (
    ("sel_daddr", "16s"),
    ("sel_saddr", "16s"),
    ("sel_dport", ">H"),
    ("sel_dport_mask", ">H"),
    ("sel_sport", ">H"),
    ("sel_sport_mask", ">H"),
    ("sel_family", "=H"),
    ("sel_prefixlen_d", "B"),
    ("sel_prefixlen_s", "B"),
    ("sel_proto", "B"),
    ("sel_pad", "3s"),
    ("sel_ifindex", "=i"),
    ("sel_user", "=I"),
)
_ID = (("daddr", "16s"), ("spi", ">I"), ("proto", "B"), ("id_pad", "3s"))
_LIFETIME_CONFIG = tuple(
    (f"lft_{kind}_{unit}", "=Q")
    for unit, kind in (
        ("byte", "soft"),
        ("byte", "hard"),
        ("packet", "soft"),
        ("packet", "hard"),
        ("add", "soft"),
        ("add", "hard"),
        ("use", "soft"),
        ("use", "hard"),
    )
)
_LIFETIME_CURRENT = (("cur_bytes", "=Q"), ("cur_packets", "=Q"), ("cur_add_time", "=Q"), ("cur_use_time", "=Q"))
_USERSA_INFO = (
    *_SELECTOR,
    *_ID,
    ("saddr", "16s"),
    *_LIFETIME_CONFIG,
    *_LIFETIME_CURRENT,
    ("stat_replay_window", "=I"),
    ("stat_replay", "=I"),
    ("stat_integrity_failed", "=I"),
    ("seq", "=I"),
    ("reqid", "=I"),
    ("family", "=H"),
    ("mode", "B"),
    ("replay_window", "B"),
    ("flags", "B"),
    ("info_pad", "7s"),
)


class ReplayVal(nla):
    """``struct xfrm_replay_state``."""

    fields = (("oseq", "=I"), ("seq", "=I"), ("bitmap", "=I"))


class XfrmMessage(nlmsg):
    """The attributes that all messages share. Payloads are raw bytes: :mod:`ipsec_gw.ike.codec` reads them."""

    prefix = "XFRMA_"
    nla_map = (
        (1, "XFRMA_ALG_AUTH", "cdata"),
        (2, "XFRMA_ALG_CRYPT", "cdata"),
        (3, "XFRMA_ALG_COMP", "cdata"),
        (4, "XFRMA_ENCAP", "cdata"),
        (5, "XFRMA_TMPL", "cdata"),
        (9, "XFRMA_LTIME_VAL", "cdata"),
        (10, "XFRMA_REPLAY_VAL", "ReplayVal"),
        (18, "XFRMA_ALG_AEAD", "cdata"),
        (20, "XFRMA_ALG_AUTH_TRUNC", "cdata"),
        (21, "XFRMA_MARK", "cdata"),
        (22, "XFRMA_TFCPAD", "cdata"),
        (23, "XFRMA_REPLAY_ESN_VAL", "cdata"),
        (24, "XFRMA_SA_EXTRA_FLAGS", "uint32"),
        (28, "XFRMA_OFFLOAD_DEV", "cdata"),
        (29, "XFRMA_SET_MARK", "uint32"),
        (31, "XFRMA_IF_ID", "uint32"),
    )
    ReplayVal = ReplayVal

    def check(self) -> None:
        """Raises ValueError if the attributes are not whole: they were decoded as far as it went."""
        deque(attributes(self.data, _head_bytes(tuple(self.fields))), maxlen=0)


@cache
def _head_bytes(fields: tuple[tuple[str, str], ...]) -> int:
    """What comes before the attributes of a message with these fields."""
    return HEADER.size + sum(struct.calcsize(f"={kind.lstrip('=>')}") for _, kind in fields)


class UserSaInfo(XfrmMessage):
    """``struct xfrm_usersa_info``, 224 bytes: NEWSA, UPDSA and the answers to GETSA."""

    fields = _USERSA_INFO


class UserSaId(XfrmMessage):
    """``struct xfrm_usersa_id``, 24 bytes: the request GETSA."""

    fields = (("daddr", "16s"), ("spi", ">I"), ("family", "=H"), ("proto", "B"), ("id_pad", "1s"))


class UserExpire(XfrmMessage):
    """``struct xfrm_user_expire``: an SA and whether it expires hard."""

    fields = (*_USERSA_INFO, ("hard", "B"), ("expire_pad", "7s"))


class AeventId(XfrmMessage):
    """``struct xfrm_aevent_id``, 48 bytes: NEWAE."""

    fields = (*UserSaId.fields, ("saddr", "16s"), ("flags", "=I"), ("reqid", "=I"))


class UserPolicyInfo(XfrmMessage):
    """``struct xfrm_userpolicy_info``, 168 bytes: NEWPOLICY and the answers to GETPOLICY."""

    fields = (
        *_SELECTOR,
        *_LIFETIME_CONFIG,
        *_LIFETIME_CURRENT,
        ("priority", "=I"),
        ("index", "=I"),
        ("dir", "B"),
        ("action", "B"),
        ("flags", "B"),
        ("share", "B"),
        ("info_pad", "4s"),
    )


class UserPolicyId(XfrmMessage):
    """``struct xfrm_userpolicy_id``, 64 bytes: the requests GETPOLICY and DELPOLICY."""

    fields = (*_SELECTOR, ("index", "=I"), ("dir", "B"), ("id_pad", "3s"))
