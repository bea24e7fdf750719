"""XFRM messages to values of the model. No sockets here: bytes in, values out."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

from ipsec_gw.ike.attributes import REPLAY_ESN_BYTES, TYPE_MASK
from ipsec_gw.ike.messages import (
    XFRM_SA_XFLAG_DONT_ENCAP_DSCP,
    XFRM_STATE_DECAP_DSCP,
    XFRM_STATE_ESN,
    XFRM_STATE_ICMP,
    XFRM_STATE_NOECN,
    XFRM_STATE_NOPMTUDISC,
    XfrmMessage,
)
from ipsec_gw.model.ids import IpAddress, IpNetwork, SaKey
from ipsec_gw.model.objects import HeaderCopies, PortMatch, UdpEncap
from ipsec_gw.model.secret import Secret
from ipsec_gw.model.snapshot import (
    NO_ALGORITHM,
    AeadKey,
    Lifetime,
    Mode,
    PolicyDirection,
    Replay,
    Template,
    XfrmMark,
    XfrmPolicy,
    XfrmSa,
)

_MODES = {0: Mode.TRANSPORT, 1: Mode.TUNNEL, 4: Mode.BEET}
_DIRECTIONS = {0: PolicyDirection.IN, 1: PolicyDirection.OUT, 2: PolicyDirection.FWD}
_UDP_ENCAP_ESPINUDP = 2
_MARK = struct.Struct("=II")
_UNKNOWN = "UNKNOWN"
_ALGORITHM_NAME_BYTES = 64
UNREADABLE = "attributes that cannot be read"
"""Among the extras of an SA whose attributes are not what they should be."""

_HONOURED = frozenset(
    {
        "ALG_AEAD",
        "ALG_AUTH",
        "ALG_AUTH_TRUNC",
        "ALG_CRYPT",
        "ENCAP",
        "REPLAY_VAL",
        "REPLAY_ESN_VAL",
        "MARK",
        "IF_ID",
        "SA_EXTRA_FLAGS",
    }
)
_NEUTRAL = frozenset(
    {"UNSPEC", "SRCADDR", "COADDR", "LASTUSED", "PAD", "ETIMER_THRESH", "REPLAY_THRESH", "SA_DIR", "MTIMER_THRESH"}
)
"""Attributes that say nothing an engine would have to do. Whatever is in neither set is listed in ``extras``."""

_FLAGS = {"DECAP_DSCP": XFRM_STATE_DECAP_DSCP, "ICMP": XFRM_STATE_ICMP}

_NAMES = {
    13: "SRCADDR",
    14: "COADDR",
    15: "LASTUSED",
    11: "REPLAY_THRESH",
    12: "ETIMER_THRESH",
    27: "PAD",
    32: "MTIMER_THRESH",
    33: "SA_DIR",
}


def parse_sa(message: XfrmMessage) -> XfrmSa:
    """An SA from NEWSA, UPDSA or a GETSA answer (``struct xfrm_usersa_info`` and its attributes).

    With attributes that cannot be read it has no key and an extra that keeps it in the kernel. Raises ValueError if not
    even its key on the wire can be told.
    """
    sa = _bare_sa(message)
    try:
        message.check()
        attributes = dict(_attributes(message))
        aead = _aead(attributes.get("ALG_AEAD"))
        extra_flags = int(attributes.get("SA_EXTRA_FLAGS", 0))
        return replace(
            sa,
            aead=aead,
            algorithm=_algorithm_name(attributes, aead),
            replay=_replay(attributes, int(message["flags"]), sa.replay.window),
            encap=_encap(attributes.get("ENCAP")),
            mark=_mark(attributes.get("MARK")),
            if_id=int(attributes.get("IF_ID", 0)),
            extras=(frozenset(attributes) - _HONOURED - _NEUTRAL) | _flags(int(message["flags"]), extra_flags),
            copies=_copies(int(message["flags"]), extra_flags),
        )
    except (struct.error, ValueError, TypeError, KeyError, IndexError):
        return replace(sa, algorithm="that cannot be read", extras=frozenset({UNREADABLE}))


def _bare_sa(message: XfrmMessage) -> XfrmSa:
    """What the message itself says, without its attributes."""
    family = int(message["family"])
    return XfrmSa(
        key=SaKey(_address(family, message["daddr"]), int(message["spi"])),
        source=_address(family, message["saddr"]),
        protocol=int(message["proto"]),
        mode=_MODES.get(int(message["mode"]), Mode.OTHER),
        reqid=int(message["reqid"]),
        aead=None,
        algorithm=NO_ALGORITHM,
        replay=_replay({}, int(message["flags"]), int(message["replay_window"])),
        lifetime=Lifetime(
            octets=int(message["cur_bytes"]),
            packets=int(message["cur_packets"]),
            add_time=int(message["cur_add_time"]),
            use_time=int(message["cur_use_time"]),
        ),
    )


def parse_policy(message: XfrmMessage) -> XfrmPolicy | None:
    """A policy from NEWPOLICY or a GETPOLICY answer; None for per-socket policies (IKE's own bypass).

    Raises ValueError for a broken one: without its templates it would let everything pass.
    """
    message.check()
    direction = _DIRECTIONS.get(int(message["dir"]))
    if direction is None:
        return None
    family = int(message["sel_family"]) or socket.AF_INET
    attributes = dict(_attributes(message))
    source = _network(family, message["sel_saddr"], message["sel_prefixlen_s"])
    destination = _network(family, message["sel_daddr"], message["sel_prefixlen_d"])
    return XfrmPolicy(
        direction=direction,
        source=source,
        destination=destination,
        priority=int(message["priority"]),
        allow=int(message["action"]) == 0,
        templates=tuple(_between(one, source, destination) for one in _templates(attributes.get("TMPL", b""))),
        bound=bool(message["sel_ifindex"] or message["sel_user"]),
        upper=int(message["sel_proto"]),
        source_port=PortMatch(int(message["sel_sport"]), int(message["sel_sport_mask"])),
        destination_port=PortMatch(int(message["sel_dport"]), int(message["sel_dport_mask"])),
        mark=_mark(attributes.get("MARK")),
        if_id=int(attributes.get("IF_ID", 0)),
        index=int(message["index"]),
    )


def pack_address(address: IpAddress) -> bytes:
    """``xfrm_address_t``: 16 bytes, IPv4 in the first four."""
    return address.packed.ljust(16, b"\0")


def family_of(address: IpAddress) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def replay_esn_with_oseq(raw: bytes, oseq: int) -> bytes:
    """``struct xfrm_replay_state_esn`` with another outbound number, everything else as the SA has it."""
    words = bytearray(raw)
    struct.pack_into("=I", words, 4, oseq & 0xFFFFFFFF)
    struct.pack_into("=I", words, 12, oseq >> 32)
    return bytes(words)


def replay_esn_with_seq(raw: bytes, seq: int) -> bytes:
    """The same with another last inbound number, and all before it received."""
    words = bytearray(raw)
    struct.pack_into("=I", words, 8, seq & 0xFFFFFFFF)
    struct.pack_into("=I", words, 16, seq >> 32)
    words[REPLAY_ESN_BYTES:] = b"\xff" * (len(words) - REPLAY_ESN_BYTES)
    return bytes(words)


def _attributes(message: XfrmMessage) -> Iterator[tuple[str, Any]]:
    for slot in message.get("attrs", ()):
        name, value = slot[0], slot[1]
        yield (_number_name(value) if name == _UNKNOWN else name.removeprefix("XFRMA_")), value


def _number_name(value: Any) -> str:
    """Of an attribute that :mod:`ipsec_gw.ike.messages` does not define: by the number that pyroute2 leaves in it."""
    number = int(value["header"]["type"]) & TYPE_MASK
    return _NAMES.get(number, f"#{number}")


def _aead(raw: bytes | None) -> AeadKey | None:
    if raw is None:
        return None
    key_bits, icv_bits = struct.unpack_from("=II", raw, _ALGORITHM_NAME_BYTES)
    start = _ALGORITHM_NAME_BYTES + 8
    return AeadKey(_c_string(raw), Secret(raw[start : start + key_bits // 8]), icv_bits)


def _algorithm_name(attributes: dict[str, Any], aead: AeadKey | None) -> str:
    if aead is not None:
        return f"{aead.name} icv {aead.icv_bits}"
    names = [_c_string(attributes[n]) for n in ("ALG_CRYPT", "ALG_AUTH_TRUNC", "ALG_COMP") if n in attributes]
    return "+".join(names) or NO_ALGORITHM


def _c_string(raw: bytes) -> str:
    return raw[:_ALGORITHM_NAME_BYTES].split(b"\0", 1)[0].decode("ascii", "replace")


def _replay(attributes: dict[str, Any], flags: int, window: int) -> Replay:
    esn = bool(flags & XFRM_STATE_ESN)
    raw = attributes.get("REPLAY_ESN_VAL")
    if raw is not None:
        _, oseq, seq, oseq_hi, seq_hi, extended_window = struct.unpack_from("=6I", raw)
        return Replay(oseq=oseq | oseq_hi << 32, seq=seq | seq_hi << 32, window=extended_window, esn=esn, extended=True)
    value = attributes.get("REPLAY_VAL")
    if value is None:
        return Replay(oseq=0, seq=0, window=window, esn=esn, extended=False)
    return Replay(oseq=int(value["oseq"]), seq=int(value["seq"]), window=window, esn=esn, extended=False)


def _encap(raw: bytes | None) -> UdpEncap | None:
    if raw is None:
        return None
    kind, source, destination = struct.unpack_from("=H", raw)[0], *struct.unpack_from(">HH", raw, 2)
    if kind != _UDP_ENCAP_ESPINUDP:
        return UdpEncap(0, 0)
    return UdpEncap(source, destination)


def _copies(flags: int, extra_flags: int) -> HeaderCopies:
    return HeaderCopies(
        dscp=not extra_flags & XFRM_SA_XFLAG_DONT_ENCAP_DSCP,
        ecn=not flags & XFRM_STATE_NOECN,
        df=not flags & XFRM_STATE_NOPMTUDISC,
    )


def _flags(flags: int, extra_flags: int) -> frozenset[str]:
    """Those that ask for something else."""
    found = {name for name, bit in _FLAGS.items() if flags & bit}
    return frozenset(found | ({"SA_EXTRA_FLAGS"} if extra_flags & ~XFRM_SA_XFLAG_DONT_ENCAP_DSCP else set()))


def pack_mark(mark: XfrmMark) -> bytes:
    """``struct xfrm_mark``."""
    return _MARK.pack(*mark)


def _mark(raw: bytes | None) -> XfrmMark | None:
    if raw is None:
        return None
    value, mask = _MARK.unpack_from(raw)
    return value, mask


def _templates(raw: bytes) -> Iterator[Template]:
    size = 64  # struct xfrm_user_tmpl
    for offset in range(0, len(raw) - size + 1, size):
        destination, spi, protocol = struct.unpack_from(">16sIB", raw, offset)
        family, source, reqid, mode = struct.unpack_from("=H2x16sIB", raw, offset + 24)
        yield Template(
            source=_address(family, source),
            destination=_address(family, destination),
            spi=spi,
            protocol=protocol,
            reqid=reqid,
            mode=_MODES.get(mode, Mode.OTHER),
        )


def _between(template: Template, source: IpNetwork, destination: IpNetwork) -> Template:
    """In transport mode charon leaves the addresses out: they are those of each packet, so of the policy's hosts."""
    hosts = source.prefixlen == source.max_prefixlen and destination.prefixlen == destination.max_prefixlen
    if template.mode is not Mode.TRANSPORT or not template.destination.is_unspecified or not hosts:
        return template
    return replace(template, source=source.network_address, destination=destination.network_address)


def _address(family: int, raw: bytes) -> IpAddress:
    return ip_address(bytes(raw[:4] if family == socket.AF_INET else raw[:16]))


def _network(family: int, raw: bytes, prefix: int) -> IpNetwork:
    return ip_network((_address(family, raw), int(prefix)), strict=False)
