"""Kernel SAs and policies by NETLINK_XFRM: dumps, the few writes we make, and a monitor that only marks dirty.

The kernel is the only source of keys (vici never carries them). Requests block for microseconds; whoever
has thousands of SAs calls the dumps in a thread.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import Self, TypeVar

from pyroute2.netlink.exceptions import NetlinkDecodeError, NetlinkError

from ipsec_gw import netlink
from ipsec_gw.errors import XfrmError
from ipsec_gw.ike import messages
from ipsec_gw.ike.codec import (
    UNREADABLE,
    family_of,
    pack_address,
    pack_mark,
    parse_policy,
    parse_sa,
    replay_esn_with_oseq,
    replay_esn_with_seq,
)
from ipsec_gw.ike.messages import AeventId, UserExpire, UserPolicyInfo, UserSaId, UserSaInfo, XfrmMessage
from ipsec_gw.ike.own import OwnPolicy, id_message, parse_own, put_message
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.snapshot import XfrmMark, XfrmPolicy, XfrmSa
from ipsec_gw.netlink import (
    HEADER,
    NETLINK_XFRM,
    NLM_F_ACK,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RECEIVE_BYTES,
    Ear,
    error_code,
)

_ANSWER_SECONDS = 5.0
_ESP = socket.IPPROTO_ESP
_ANSWERS = {
    messages.XFRM_MSG_GETSA: messages.XFRM_MSG_NEWSA,
    messages.XFRM_MSG_GETPOLICY: messages.XFRM_MSG_NEWPOLICY,
}
"""What the kernel answers to a question with."""

_LAST, _LAST_ESN = (1 << 32) - 1, (1 << 64) - 1
"""The last sequence numbers without and with ESN (RFC 4303, 2.2.1)."""

M = TypeVar("M", bound=XfrmMessage)
T = TypeVar("T")
U = TypeVar("U")


class XfrmSocket:
    """A request socket to the kernel's XFRM in this network namespace. Needs CAP_NET_ADMIN.

    Raises XfrmError, with the kernel's errno, whenever the kernel says no. ``malformed`` counts messages that could not
    be read, and SAs of a dump whose attributes could not. The kernel finds an SA with a mark only by it: those of the
    last dump are known.
    """

    def __init__(self) -> None:
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_XFRM)
            self._socket.bind((0, 0))
        except OSError as error:
            raise XfrmError(
                f"the kernel offers no XFRM ({error.strerror}) - load xfrm_user and run as root", error.errno or 0
            ) from None
        self._socket.settimeout(_ANSWER_SECONDS)
        self._sequence = 0
        self.malformed = 0
        self._marks: dict[SaKey, XfrmMark] = {}
        self._turn = threading.Lock()  # dumps run in threads, beside single requests of the event loop's

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def count_malformed(self) -> None:
        """Another message of the kernel's XFRM could not be read."""
        self.malformed += 1

    def sas(self) -> list[XfrmSa]:
        """All SAs (GETSA dump), keys included."""
        answers = self._request(UserSaInfo, messages.XFRM_MSG_GETSA, NLM_F_DUMP, b"")
        found = [self._read(parse_sa, answer) for answer in answers]
        self._marks = {sa.key: sa.mark for sa in found if sa.mark is not None}
        self.malformed += sum(UNREADABLE in sa.extras for sa in found)
        return found

    def policies(self) -> list[XfrmPolicy]:
        """All policies (GETPOLICY dump) but per-socket ones and the gateway's own, in the order of their making.

        A rekey moves a policy to the front of the kernel's own list (``__xfrm_policy_link``); its index stays.
        """
        answers = self._request(UserPolicyInfo, messages.XFRM_MSG_GETPOLICY, NLM_F_DUMP, b"")
        found = (self._read(parse_policy, answer) for answer in answers if self._read(parse_own, answer) is None)
        return sorted((policy for policy in found if policy is not None), key=lambda policy: policy.index)

    def own_policies(self) -> frozenset[OwnPolicy]:
        """The policies that the gateway has put there, of an earlier life too."""
        answers = self._request(UserPolicyInfo, messages.XFRM_MSG_GETPOLICY, NLM_F_DUMP, b"")
        return frozenset(own for answer in answers if (own := self._read(parse_own, answer)) is not None)

    def has_own(self, policy: OwnPolicy) -> bool:
        """Whether one of the gateway's own policies is in place, without a dump of all."""
        try:
            answers = self._request(UserPolicyInfo, messages.XFRM_MSG_GETPOLICY, 0, _body(id_message(policy)))
        except XfrmError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return [self._read(parse_own, answer) for answer in answers] == [policy]

    def put_own(self, policy: OwnPolicy) -> None:
        """Put one of the gateway's own policies in place."""
        self._request(UserPolicyInfo, messages.XFRM_MSG_UPDPOLICY, NLM_F_ACK, _body(put_message(policy)))

    def delete_own(self, policy: OwnPolicy) -> None:
        """Take one of the gateway's own policies away. One that has gone is fine."""
        try:
            self._request(UserPolicyInfo, messages.XFRM_MSG_DELPOLICY, NLM_F_ACK, _body(id_message(policy)))
        except XfrmError as error:
            if error.errno != errno.ENOENT:
                raise

    def sa(self, key: SaKey) -> XfrmSa | None:
        """One SA, or None if the kernel has it no more."""
        message = self._get(key)
        return None if message is None else self._read(parse_sa, message)

    def raise_oseq(self, key: SaKey, oseq: int) -> None:
        """Set the last used outbound sequence number of a live SA (NEWAE), never downwards.

        At most to the last number that there is: from then on the kernel sends no more with this SA. The attribute must
        be the one that the SA has: the other one succeeds and does nothing.
        """
        message, sa = self._numbered(key)
        oseq = min(oseq, _LAST_ESN if sa.replay.esn else _LAST)
        if oseq <= sa.replay.oseq:
            return
        extended = message.get_attr("XFRMA_REPLAY_ESN_VAL")
        if extended is not None:
            self._set_replay(key, ("XFRMA_REPLAY_ESN_VAL", replay_esn_with_oseq(extended, oseq)))
        else:
            current = message.get_attr("XFRMA_REPLAY_VAL") or {"seq": 0, "bitmap": 0}
            value = {"oseq": oseq, "seq": current["seq"], "bitmap": current["bitmap"]}
            self._set_replay(key, ("XFRMA_REPLAY_VAL", value))

    def raise_seq(self, key: SaKey, seq: int) -> None:
        """Set the last received inbound sequence number of a live SA (NEWAE), never downwards: all up to it are seen.

        Of an SA without a replay window nothing is set.
        """
        message, sa = self._numbered(key)
        seq = min(seq, _LAST_ESN if sa.replay.esn else _LAST)
        if seq <= sa.replay.seq or sa.replay.window == 0:
            return
        extended = message.get_attr("XFRMA_REPLAY_ESN_VAL")
        if extended is not None:
            self._set_replay(key, ("XFRMA_REPLAY_ESN_VAL", replay_esn_with_seq(extended, seq)))
        else:
            current = message.get_attr("XFRMA_REPLAY_VAL") or {"oseq": 0}
            value = {"oseq": current["oseq"], "seq": seq, "bitmap": 0xFFFFFFFF}  # bit 0 is the newest
            self._set_replay(key, ("XFRMA_REPLAY_VAL", value))

    def _numbered(self, key: SaKey) -> tuple[UserSaInfo, XfrmSa]:
        """An SA whose numbers can be read. Raises XfrmError."""
        message = self._get(key)
        if message is None:
            raise XfrmError(f"SA {key} is gone from the kernel", errno.ESRCH)
        sa = self._read(parse_sa, message)
        if UNREADABLE in sa.extras:
            raise XfrmError(f"SA {key} has {UNREADABLE}: its number is left alone", errno.EBADMSG)
        return message, sa

    def _set_replay(self, key: SaKey, attribute: tuple[str, object]) -> None:
        event = AeventId()
        _set_sa_id(event, key)
        event["saddr"] = bytes(16)
        event["attrs"] = [attribute, *self._mark(key)]
        self._request(AeventId, messages.XFRM_MSG_NEWAE, NLM_F_ACK | NLM_F_REPLACE, _body(event))

    def expire_soft(self, key: SaKey) -> None:
        """Tell charon, as the kernel would, that this SA should be rekeyed now (EXPIRE, hard = 0)."""
        self._expire(key, hard=False)

    def expire_hard(self, key: SaKey) -> None:
        """Delete this SA and tell charon, as the kernel would at a limit (EXPIRE, hard = 1)."""
        self._expire(key, hard=True)

    def _expire(self, key: SaKey, *, hard: bool) -> None:
        message = self._get(key)
        if message is None:
            raise XfrmError(f"SA {key} is gone from the kernel", errno.ESRCH)
        expire = UserExpire()
        for name, _ in UserSaInfo.fields:
            expire[name] = message[name]
        expire["hard"] = int(hard)
        expire["expire_pad"] = bytes(7)
        expire["attrs"] = self._mark(key)
        self._request(UserExpire, messages.XFRM_MSG_EXPIRE, NLM_F_ACK, _body(expire))

    def _get(self, key: SaKey) -> UserSaInfo | None:
        request = UserSaId()
        _set_sa_id(request, key)
        request["attrs"] = self._mark(key)
        try:
            answers = self._request(UserSaInfo, messages.XFRM_MSG_GETSA, 0, _body(request))
        except XfrmError as error:
            if error.errno == errno.ESRCH:
                return None
            raise
        return answers[0] if answers else None

    def _mark(self, key: SaKey) -> list[tuple[str, bytes]]:
        """The attribute without which the kernel does not find the SA, none for most."""
        mark = self._marks.get(key)
        return [] if mark is None else [("XFRMA_MARK", pack_mark(mark))]

    def _request(self, kind: type[M], message_type: int, flags: int, body: bytes) -> list[M]:
        """Send one request, and decode its answers when the kernel has said that they are complete: thousands of them
        take seconds, and others have their turn meanwhile.
        """
        with self._turn:
            answers = self._exchange(message_type, flags, body)
        return [self._read(_decoded(kind), raw) for raw in answers]

    def _exchange(self, message_type: int, flags: int, body: bytes) -> list[bytes]:
        try:
            return self._converse(message_type, flags, body)
        except OSError as error:
            raise XfrmError(f"the kernel's XFRM cannot be asked: {error.strerror}", error.errno or 0) from None

    def _converse(self, message_type: int, flags: int, body: bytes) -> list[bytes]:
        self._sequence += 1
        header = HEADER.pack(HEADER.size + len(body), message_type, NLM_F_REQUEST | flags, self._sequence, 0)
        self._socket.send(header + body)
        answers: list[bytes] = []
        several = flags & NLM_F_DUMP == NLM_F_DUMP or bool(flags & NLM_F_ACK)
        while True:
            try:
                datagram = self._socket.recv(RECEIVE_BYTES)
            except TimeoutError:
                raise XfrmError("the kernel's XFRM did not answer within 5 s - see `dmesg`", errno.ETIMEDOUT) from None
            for answer_type, sequence, raw in self._read(_framed, datagram):
                if sequence != self._sequence:
                    continue
                if answer_type in {NLMSG_ERROR, NLMSG_DONE}:
                    # Of a dump that broke off, the last message tells it: what came before is not all there is.
                    if code := self._read(error_code, raw):
                        raise XfrmError(f"the kernel refused an XFRM request: {os.strerror(code)}", code)
                    return answers
                if answer_type != _ANSWERS.get(message_type):
                    raise self._unreadable(f"type {answer_type}")
                answers.append(raw)
                if not several:
                    return answers

    def _read(self, parse: Callable[[T], U], what: T) -> U:
        """Parse a message. One that is not what the kernel sends is counted, and never taken for something else."""
        try:
            return parse(what)
        except (NetlinkError, NetlinkDecodeError, struct.error, ValueError, TypeError, KeyError, IndexError) as error:
            raise self._unreadable(type(error).__name__) from None  # its text may quote a key

    def _unreadable(self, reason: str) -> XfrmError:
        """The error of a message that cannot be read, which is counted."""
        self.count_malformed()
        return XfrmError(f"a message of the kernel's XFRM cannot be read ({reason})", errno.EBADMSG)


def _decoded(kind: type[M]) -> Callable[[bytes], M]:
    def decode(raw: bytes) -> M:
        message = kind(raw)
        message.decode()
        return message

    return decode


class XfrmMonitor(Ear):
    """Multicast notifications of SAs, policies and expiries. Their content is not used: they mark things dirty.

    Decisions come from dumps (DESIGN.md, invariant 9), so a lost message (ENOBUFS) is nothing but a mark as well;
    ``overruns`` counts them. ``changes`` counts datagrams, and lets a reader see that a dump was not disturbed.
    """

    def __init__(
        self,
        changed: Callable[[], None],
        groups: tuple[int, ...] = (messages.XFRMNLGRP_SA, messages.XFRMNLGRP_POLICY, messages.XFRMNLGRP_EXPIRE),
    ) -> None:
        super().__init__(NETLINK_XFRM, groups)
        self._changed = changed
        self.changes = 0

    def drain(self) -> None:
        """Read whatever is queued; call the callback once if there was anything."""
        before = self.changes
        for _ in self.datagrams():
            self.changes += 1
        if self.changes != before:
            self._changed()


def _set_sa_id(message: XfrmMessage, key: SaKey) -> None:
    message["daddr"] = pack_address(key.destination)
    message["spi"] = key.spi
    message["family"] = family_of(key.destination)
    message["proto"] = _ESP
    message["id_pad"] = bytes(1)


def _body(message: XfrmMessage) -> bytes:
    """The encoded message without pyroute2's netlink header: ours carries the sequence number."""
    message.encode()
    return bytes(message.data[HEADER.size :])


def _framed(datagram: bytes) -> list[tuple[int, int, bytes]]:
    return list(netlink.messages(datagram))
