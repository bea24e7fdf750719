"""Input from outside never breaks a parser, whatever it is."""

from __future__ import annotations

import struct
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from pyroute2.netlink import NetlinkError

from ipsec_gw.config.load import load
from ipsec_gw.errors import ConfigError
from ipsec_gw.ike.codec import parse_policy, parse_sa
from ipsec_gw.ike.messages import UserPolicyInfo, UserSaInfo
from ipsec_gw.model.snapshot import XfrmPolicy, XfrmSa

FAMILIES = st.sampled_from([2, 10])


def netlink(kind: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


ATTRIBUTES = st.lists(st.tuples(st.integers(0, 45), st.binary(min_size=80, max_size=160)), max_size=6).map(
    lambda pairs: b"".join(attribute(kind, data) for kind, data in pairs if kind not in {10, 24, 29, 31})
)
"""Attributes as long as any that we read: the kernel is trusted for lengths, not for kinds and values."""


@given(st.binary(min_size=224, max_size=224), FAMILIES, ATTRIBUTES)
def test_any_sa_of_the_kernel_is_read(info: bytes, family: int, attributes: bytes) -> None:
    body = info[:212] + struct.pack("=H", family) + info[214:] + attributes
    message = UserSaInfo(netlink(0x10, body))
    try:
        message.decode()
    except NetlinkError:
        return
    assert isinstance(parse_sa(message), XfrmSa)


@given(
    st.binary(min_size=168, max_size=168),
    FAMILIES,
    st.integers(0, 32),
    st.integers(0, 32),
    st.lists(st.binary(min_size=64, max_size=64), max_size=4),
)
def test_any_policy_of_the_kernel_is_read(info: bytes, family: int, dst: int, src: int, templates: list[bytes]) -> None:
    body = info[:40] + struct.pack("=HBB", family, dst, src) + info[44:]
    whole = b"".join(t[:24] + struct.pack("=H", 2) + t[26:] for t in templates)
    message = UserPolicyInfo(netlink(0x13, body + attribute(5, whole)))
    message.decode()
    parsed = parse_policy(message)
    if parsed is not None:
        assert isinstance(parsed, XfrmPolicy)
        assert len(parsed.templates) == len(templates)


@given(st.text(max_size=300))
def test_any_configuration_is_read_or_refused_with_its_line(tmp_path_factory: object, text: str) -> None:
    path = Path("/dev/shm") / f"ipsec-gw-fuzz-{id(tmp_path_factory)}.toml"
    path.write_text(text, encoding="utf-8", errors="replace")
    complaint = f"{path}:"
    try:
        load(path)
    except ConfigError as error:
        complaint = str(error)
    path.unlink()
    assert complaint.startswith(f"{path}:")
