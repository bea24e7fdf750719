"""XFRM messages against hand-packed kernel structures (``linux/xfrm.h``)."""

from __future__ import annotations

import struct
from ipaddress import ip_address, ip_network

import pytest

from ipsec_gw.ike.codec import UNREADABLE, parse_policy, parse_sa, replay_esn_with_oseq
from ipsec_gw.ike.messages import UserPolicyInfo, UserSaInfo
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import HeaderCopies, UdpEncap
from ipsec_gw.model.secret import Secret
from ipsec_gw.model.snapshot import AeadKey, Lifetime, Mode, PolicyDirection, Replay, Template

A, B = ip_address("10.1.2.3").packed, ip_address("10.9.8.7").packed
KEY = bytes(range(1, 21))


def selector(source: str = "0.0.0.0/0", destination: str = "0.0.0.0/0", proto: int = 0, dport_mask: int = 0) -> bytes:
    src, dst = ip_network(source), ip_network(destination)
    return (
        dst.network_address.packed.ljust(16, b"\0")
        + src.network_address.packed.ljust(16, b"\0")
        + struct.pack(">HHHH", 443 if dport_mask else 0, dport_mask, 0, 0)
        + struct.pack("=HBBB3xiI", 2, dst.prefixlen, src.prefixlen, proto, 0, 0)
    )


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def netlink(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def aead(name: bytes = b"rfc4106(gcm(aes))", icv: int = 128) -> bytes:
    return attribute(18, name.ljust(64, b"\0") + struct.pack("=II", len(KEY) * 8, icv) + KEY)


def usersa(*attributes: bytes, mode: int = 1, flags: int = 0, window: int = 32) -> UserSaInfo:
    body = (
        selector()
        + B.ljust(16, b"\0")
        + struct.pack(">IB3x", 0xDEADBEEF, 50)
        + A.ljust(16, b"\0")
        + bytes(64)
        + struct.pack("=4Q", 1111, 22, 333, 444)
        + bytes(12)
        + struct.pack("=IIHBBB7x", 0, 77, 2, mode, window, flags)
    )
    assert len(body) == 224
    message = UserSaInfo(netlink(0x10, body + b"".join(attributes)))
    message.decode()
    return message


def test_an_sa_with_legacy_replay_state() -> None:
    sa = parse_sa(usersa(aead(), attribute(10, struct.pack("=III", 41, 42, 0xFF)), attribute(16, b"\0" * 4)))
    assert sa.key == SaKey(ip_address("10.9.8.7"), 0xDEADBEEF)
    assert (sa.source, sa.protocol, sa.reqid, sa.mode) == (ip_address("10.1.2.3"), 50, 77, Mode.TUNNEL)
    assert sa.aead == AeadKey("rfc4106(gcm(aes))", Secret(KEY), 128)
    assert sa.replay == Replay(oseq=41, seq=42, window=32, esn=False, extended=False)
    assert sa.lifetime == Lifetime(1111, 22, 333, 444)


def test_an_esn_sa_joins_both_halves() -> None:
    state = struct.pack("=6I", 4, 5, 6, 7, 8, 128) + bytes(16)
    sa = parse_sa(usersa(aead(), attribute(23, state), flags=0x80))
    assert sa.replay == Replay(oseq=5 | 7 << 32, seq=6 | 8 << 32, window=128, esn=True, extended=True)
    changed = replay_esn_with_oseq(state, 0x9_0000000A)
    assert struct.unpack_from("=6I", changed) == (4, 0xA, 6, 9, 8, 128)
    assert changed[24:] == state[24:]


def test_encapsulation_mark_and_if_id() -> None:
    encap = attribute(4, struct.pack("=H", 2) + struct.pack(">HH", 4500, 31337) + bytes(18))
    sa = parse_sa(
        usersa(aead(), encap, attribute(21, struct.pack("=II", 5, 0xFF)), attribute(31, struct.pack("=I", 9)))
    )
    assert (sa.encap, sa.mark, sa.if_id) == (UdpEncap(4500, 31337), (5, 0xFF), 9)
    assert sa.extras == frozenset()


def test_what_an_engine_could_not_honour_is_listed() -> None:
    sa = parse_sa(usersa(aead(), attribute(28, bytes(8)), attribute(22, struct.pack("=I", 100)), attribute(99, b"\1")))
    assert {"OFFLOAD_DEV", "TFCPAD"} <= sa.extras
    assert len(sa.extras) == 3, "an attribute of a newer kernel that nobody knows is not overlooked"


def test_what_says_nothing_to_an_engine_does_not_keep_an_sa_in_the_kernel() -> None:
    """LASTUSED, PAD, MTIMER_THRESH and SA_DIR, which newer kernels show of every SA or of those that were used."""
    shown = [attribute(15, bytes(8)), attribute(27, b""), attribute(32, bytes(4)), attribute(33, b"\1")]
    assert parse_sa(usersa(aead(), *shown)).extras == frozenset()
    assert parse_sa(usersa(aead(), *shown, attribute(35, bytes(4)))).extras == {"#35"}


def test_other_algorithms_are_named_for_people() -> None:
    cipher = attribute(2, b"cbc(aes)".ljust(64, b"\0") + struct.pack("=I", 128) + bytes(16))
    auth = attribute(20, b"hmac(sha256)".ljust(64, b"\0") + struct.pack("=II", 256, 128) + bytes(32))
    sa = parse_sa(usersa(cipher, auth, mode=0))
    assert (sa.aead, sa.algorithm, sa.mode) == (None, "cbc(aes)+hmac(sha256)", Mode.TRANSPORT)


@pytest.mark.parametrize(
    "broken",
    [
        attribute(21, bytes(4)),
        attribute(10, bytes(8)),
        attribute(15, bytes(8) + attribute(21, bytes(8))),
        attribute(23, struct.pack("=6I", 5, 5, 6, 7, 8, 128) + bytes(16)),
        attribute(31, bytes(4))[:-2],
        attribute(0, b""),
        b"\0\0",
    ],
)
def test_an_sa_with_a_broken_attribute_stays_in_the_kernel(broken: bytes) -> None:
    """Cut, or as long as if it were the next one too: a mark would be missing."""
    sa = parse_sa(usersa(aead(), broken))
    assert (sa.key.spi, sa.aead, sa.extras) == (0xDEADBEEF, None, {UNREADABLE})


def policy(direction: int, sel: bytes, *attributes: bytes, action: int = 0) -> UserPolicyInfo:
    body = sel + bytes(64 + 32) + struct.pack("=IIBBBB4x", 375423, 8, direction, action, 0, 0)
    assert len(body) == 168
    message = UserPolicyInfo(netlink(0x13, body + b"".join(attributes)))
    message.decode()
    return message


def template(spi: int = 0xABCD, mode: int = 1, ends: tuple[bytes, bytes] = (A, B)) -> bytes:
    return (
        ends[1].ljust(16, b"\0")
        + struct.pack(">IB3x", spi, 50)
        + struct.pack("=H2x", 2)
        + ends[0].ljust(16, b"\0")
        + struct.pack("=IBBBx3I", 77, mode, 0, 0, *([0xFFFFFFFF] * 3))
    )


COPIES = {
    "as usual": (0, 0, HeaderCopies(), set()),
    "copy_ecn = no": (1, 0, HeaderCopies(ecn=False), set()),
    "copy_df = no": (4, 0, HeaderCopies(df=False), set()),
    "copy_dscp = no": (0, 1, HeaderCopies(dscp=False), set()),
    "copy_dscp = yes": (2, 0, HeaderCopies(), {"DECAP_DSCP"}),
    "icmp": (16, 0, HeaderCopies(), {"ICMP"}),
    "numbers may wrap": (0, 2, HeaderCopies(), {"SA_EXTRA_FLAGS"}),
}


@pytest.mark.parametrize("case", COPIES)
def test_what_is_copied_between_headers(case: str) -> None:
    flags, extra, copies, extras = COPIES[case]
    parts = [aead()] + ([attribute(24, struct.pack("=I", extra))] if extra else [])
    parsed = parse_sa(usersa(b"".join(parts), flags=flags))
    assert (parsed.copies, parsed.extras) == (copies, extras)


def test_a_policy_with_its_template() -> None:
    parsed = parse_policy(policy(1, selector("192.168.1.0/24", "192.168.2.0/24"), attribute(5, template())))
    assert parsed is not None
    assert (parsed.direction, parsed.priority, parsed.allow, parsed.selector.narrowed) == (
        PolicyDirection.OUT,
        375423,
        True,
        False,
    )
    assert (str(parsed.source), str(parsed.destination), parsed.index) == ("192.168.1.0/24", "192.168.2.0/24", 8)
    assert parsed.templates == (Template(ip_address("10.1.2.3"), ip_address("10.9.8.7"), 0xABCD, 50, 77, Mode.TUNNEL),)


@pytest.mark.parametrize(
    "broken", [attribute(5, template()[:-4]), attribute(5, template())[:-4], attribute(21, bytes(4))]
)
def test_a_policy_with_a_broken_attribute_is_refused(broken: bytes) -> None:
    """Without its template it would let everything pass."""
    message = policy(1, selector("192.168.1.0/24", "192.168.2.0/24"), broken)
    with pytest.raises(ValueError, match="attribute"):
        parse_policy(message)


@pytest.mark.parametrize(
    ("source", "destination", "mode", "wanted"),
    [
        ("10.1.2.3/32", "10.9.8.7/32", 0, ("10.1.2.3", "10.9.8.7")),
        ("10.1.2.3/32", "10.9.8.0/24", 0, ("0.0.0.0", "0.0.0.0")),
        ("10.1.2.0/24", "10.9.8.7/32", 0, ("0.0.0.0", "0.0.0.0")),
        ("10.1.2.3/32", "10.9.8.7/32", 1, ("0.0.0.0", "0.0.0.0")),
    ],
)
def test_a_template_of_transport_mode_is_for_the_hosts_of_its_policy(
    source: str, destination: str, mode: int, wanted: tuple[str, str]
) -> None:
    """charon names no addresses there."""
    nameless = template(mode=mode, ends=(bytes(4), bytes(4)))
    parsed = parse_policy(policy(1, selector(source, destination), attribute(5, nameless)))
    assert parsed is not None
    (one,) = parsed.templates
    assert (str(one.source), str(one.destination)) == wanted
    assert parsed.transports is (mode == 0)


def test_ports_and_protocols_narrow_a_policy() -> None:
    for sel in (selector(proto=6), selector(dport_mask=0xFFFF)):
        parsed = parse_policy(policy(1, sel))
        assert parsed is not None
        assert parsed.selector.narrowed


def test_per_socket_policies_are_left_out_and_blocks_are_seen() -> None:
    assert parse_policy(policy(3, selector())) is None
    blocked = parse_policy(policy(1, selector(), action=1))
    assert blocked is not None
    assert not blocked.allow
