"""Whatever is wrong with a message of the kernel: an error that is counted, never a wrong SA, policy or number."""

from __future__ import annotations

import errno
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from ipaddress import ip_address
from typing import Any, NamedTuple

import pytest

from ipsec_gw.errors import IpsecGwError, XfrmError
from ipsec_gw.ike import aevent, xfrm
from ipsec_gw.ike.aevent import StateSocket
from ipsec_gw.ike.codec import UNREADABLE
from ipsec_gw.ike.xfrm import XfrmSocket
from ipsec_gw.mirror import nftables
from ipsec_gw.mirror.changes import Concern
from ipsec_gw.mirror.nftables import META_MARK, RETURN, Chain, NfTables, Pairs, Table, meta
from ipsec_gw.model.snapshot import ResolvedHop
from tests.fuzz.breaking import BREAKS, COUNT, SECONDS, SEED, cut
from tests.fuzz.test_messages import END, Kernel, attribute, netlink

NEWSA, NEWPOLICY = 0x10, 0x13
NEWRULE, NEWELEMENTS, NEWROUTE, NEWNEIGHBOUR = 0xA06, 0xA0C, 24, 28
INFO_BYTES = {NEWSA: 224, NEWPOLICY: 168, NEWRULE: 4, NEWELEMENTS: 4, NEWROUTE: 12, NEWNEIGHBOUR: 12}


def address(text: str) -> bytes:
    return ip_address(text).packed.ljust(16, b"\0")


def selector(family: int = 2) -> bytes:
    return bytes(40) + struct.pack("=HBBB3xiI", family, 0, 0, 0, 0, 0)


def sa(spi: int, *attributes: bytes, addresses: tuple[str, str] = ("192.0.2.1", "192.0.2.2"), flags: int = 0) -> bytes:
    source, destination = addresses
    identity = address(destination) + struct.pack(">IB3x", spi, 50) + address(source)
    family = 2 if ip_address(source).version == 4 else 10
    tail = struct.pack("=4Q12xIIHBBB7x", 1, 2, 3, 4, 0, 77, family, 1, 32, flags)
    return netlink(NEWSA, selector(family) + identity + bytes(64) + tail + b"".join(attributes))


def policy(direction: int, index: int, *attributes: bytes, action: int = 0) -> bytes:
    body = selector() + bytes(96) + struct.pack("=IIBBBB4x", 375423, index, direction, action, 0, 0)
    return netlink(NEWPOLICY, body + b"".join(attributes))


def aead(key: bytes) -> bytes:
    return attribute(18, b"rfc4106(gcm(aes))".ljust(64, b"\0") + struct.pack("=II", len(key) * 8, 128) + key)


def template(source: str, destination: str) -> bytes:
    identity = address(destination) + struct.pack(">IB3x", 0, 50)
    return identity + struct.pack("=H2x16sIBBBxIII", 2, address(source), 77, 1, 0, 0, 0, 0, 0)


REPLAY = attribute(10, struct.pack("=3I", 41, 42, 7))
REPLAY_ESN = attribute(23, struct.pack("=6I", 4, 41, 42, 1, 2, 128) + bytes(16))
MARK, IF_ID = attribute(21, struct.pack("=II", 5, 0xFF)), attribute(31, struct.pack("=I", 9))
LASTUSED, COADDR, SA_DIR = attribute(15, bytes(8)), attribute(14, bytes(16)), attribute(33, b"\1")
ENCAP = attribute(4, struct.pack("=H", 2) + struct.pack(">HH", 4500, 31337) + bytes(18))
CIPHER = attribute(2, b"cbc(aes)".ljust(64, b"\0") + struct.pack("=I", 128) + bytes(16))
AUTH = attribute(20, b"hmac(sha256)".ljust(64, b"\0") + struct.pack("=II", 256, 128) + bytes(32))
ONE, TWO = template("192.0.2.1", "192.0.2.2"), template("192.0.2.1", "198.51.100.2")

SAS = (
    sa(1, aead(bytes(range(1, 21))), LASTUSED, MARK, REPLAY, IF_ID)
    + sa(2, CIPHER, AUTH, attribute(1, AUTH[4:68] + struct.pack("=I", 256) + bytes(32)), ENCAP, REPLAY),
    sa(3, aead(bytes(range(1, 37))), COADDR, ENCAP, REPLAY_ESN, attribute(24, struct.pack("=I", 1)), SA_DIR, flags=128)
    + sa(4, aead(bytes(range(9, 29))), LASTUSED, REPLAY_ESN, IF_ID, addresses=("2001:db8::1", "2001:db8::2")),
    END,
)
POLICIES = (
    policy(0, 8, attribute(5, ONE), MARK, IF_ID) + policy(1, 17, attribute(5, ONE + TWO)),
    policy(1, 25, action=1) + policy(2, 34) + policy(0, 0x6967_0000, MARK),
    END,
)


def netlink_lengths(datagram: bytes) -> Iterator[tuple[int, str]]:
    """Of messages and of their attributes."""
    start = 0
    while start < len(datagram):
        whole, kind = struct.unpack_from("=IH", datagram, start)
        yield start, "=I"
        place = start + 16 + INFO_BYTES.get(kind, whole)
        while place < start + whole:
            yield place, "=H"
            place += struct.unpack_from("=H", datagram, place)[0] + 3 & ~3
        start += whole + 3 & ~3


class Answer(NamedTuple):
    """What a dump came to, and how many messages or SAs could not be read."""

    found: list[Any] | XfrmError
    malformed: int


class Question(NamedTuple):
    """Something that is asked of the kernel, and its datagrams if all is well."""

    name: str
    ask: Callable[[list[bytes]], Answer]
    datagrams: tuple[bytes, ...]


def asked(method: Callable[[XfrmSocket], Iterable[Any]], datagrams: list[bytes]) -> Answer:
    with answering(xfrm, datagrams), XfrmSocket() as socket:
        found = outcome(partial(method, socket))
        return Answer(found, socket.malformed)


def asked_in_bulk(datagrams: list[bytes]) -> Answer:
    malformed: list[int] = []
    with answering(aevent, datagrams), StateSocket(lambda: malformed.append(1)) as socket:
        return Answer(outcome(socket.states), len(malformed))


def outcome(ask: Callable[[], Iterable[Any]]) -> list[Any] | XfrmError:
    try:
        return list(ask())
    except XfrmError as error:
        return error


@contextmanager
def answering(module: Any, datagrams: list[bytes]) -> Iterator[None]:
    """The module's sockets are answered with these datagrams."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module.socket, "socket", lambda *_: Kernel(datagrams))
        yield


QUESTIONS = (
    Question("SAs", partial(asked, XfrmSocket.sas), SAS),
    Question("policies", partial(asked, XfrmSocket.policies), POLICIES),
    Question("own policies", partial(asked, XfrmSocket.own_policies), POLICIES),
    Question("states", asked_in_bulk, SAS),
)


def complaint(right: list[Any], answer: Answer, told: bool) -> str:
    """What is wrong with the answer to a broken message, if anything is."""
    if isinstance(answer.found, XfrmError):
        return "not counted" if answer.found.errno == errno.EBADMSG and not answer.malformed else ""
    if not all(type(one) is type(right[0]) for one in answer.found):
        return f"what was not asked for: {answer.found}"
    unread = [one for one in answer.found if UNREADABLE in getattr(one, "extras", ())]
    wrong = [one for one in answer.found if one not in right and one not in unread]
    left_out = len(right) - len(answer.found)
    if told and wrong:
        return f"what was not sent: {wrong}"
    if told and len(unread) + left_out != answer.malformed:
        return f"{left_out} left out, {len(unread)} unreadable, {answer.malformed} counted"
    return ""


@pytest.mark.timeout(SECONDS)
def test_a_broken_message_of_the_kernel_is_counted_and_nothing_wrong_is_read() -> None:
    print(f"SEED={SEED} N={COUNT}")
    chance = random.Random(SEED)
    right = {question.name: question.ask(list(question.datagrams)).found for question in QUESTIONS}
    seen: Counter[str] = Counter()
    for number in range(COUNT // 2):
        question, how = chance.choice(QUESTIONS), chance.choice(BREAKS)
        datagrams = list(question.datagrams)
        victim = chance.randrange(len(datagrams))
        broken = how(chance, datagrams[victim], list(netlink_lengths(datagrams[victim])))
        datagrams[victim] = broken.message
        answer, sent = question.ask(datagrams), right[question.name]
        assert isinstance(sent, list)
        wrong = complaint(sent, answer, broken.told)
        assert not wrong, f"{number}: {question.name}, {how.__name__}, {broken.message.hex()}: {wrong}"
        seen[f"{how.__name__} {'refused' if isinstance(answer.found, XfrmError) else 'read'}"] += 1
    print(dict(seen))


def test_policies_come_in_the_order_of_their_making() -> None:
    """A rekey moves a policy to the front of the dump: which of two tunnels an engine gets must not change by that."""
    moved = (POLICIES[1], POLICIES[0], END)
    first, second = (QUESTIONS[1].ask(list(datagrams)).found for datagrams in (POLICIES, moved))
    assert first == second
    assert isinstance(first, list)
    assert [policy.index for policy in first] == [8, 17, 25, 34]


def test_the_same_messages_are_read_when_nothing_is_wrong_with_them() -> None:
    """Without it, the other test might pass because all is refused."""
    counts = {question.name: question.ask(list(question.datagrams)) for question in QUESTIONS}
    assert {name: len(answer.found) for name, answer in counts.items() if isinstance(answer.found, list)} == {
        "SAs": 4,
        "policies": 4,
        "own policies": 1,
        "states": 4,
    }
    assert not any(answer.malformed for answer in counts.values())


PAIRS = frozenset({bytes(range(8)), bytes(range(8, 16))})
TABLE = Table("ours", (Chain("out", "filter", 3, 0, ((meta(META_MARK), RETURN), (RETURN,))),), 4, (Pairs("ab", PAIRS),))
NFGEN = bytes([2, 0, 0, 0])
GATEWAY, MAC = ip_address("192.0.2.254"), bytes([2, 0, 0, 0, 0, 1])
PEER = ip_address("198.51.100.1")
CONCERN = Concern(frozenset({PEER}), {PEER: ResolvedHop("wan0", GATEWAY, MAC.hex(":"), 1500)})


def second(datagram: bytes) -> bytes:
    """As an answer to the second question."""
    return datagram[:8] + struct.pack("=I", 2) + datagram[12:]


def rule(number: int) -> bytes:
    recipe = TABLE.recipe(TABLE.chains[0], number)
    return netlink(NEWRULE, NFGEN + attribute(1, b"ours\0") + attribute(2, b"out\0") + attribute(7, recipe))


ELEMENTS = attribute(3, b"".join(attribute(1, attribute(1, attribute(1, pair))) for pair in sorted(PAIRS)))
RULES = (rule(0) + rule(1), END, second(netlink(NEWELEMENTS, NFGEN + ELEMENTS)), second(END))
NEWS = (
    netlink(
        NEWROUTE, struct.pack("=8BI", 2, 24, 0, 0, 254, 4, 0, 1, 0) + attribute(1, ip_address("203.0.113.0").packed)
    ),
    netlink(
        NEWNEIGHBOUR, struct.pack("=BBHiHBB", 2, 0, 0, 2, 2, 0, 1) + attribute(1, GATEWAY.packed) + attribute(2, MAC)
    ),
)


def table_is_there(datagrams: list[bytes]) -> bool | IpsecGwError:
    with answering(nftables, datagrams), closing(NfTables()) as kernel:
        try:
            return kernel.holds(TABLE)
        except IpsecGwError as error:
            return error


def test_a_broken_message_of_the_rest_of_netlink_is_an_error_or_a_reason_to_look() -> None:
    print(f"SEED={SEED} N={COUNT}")
    chance = random.Random(SEED)
    assert table_is_there(list(RULES)) is True
    assert not any(map(CONCERN.touched_by, NEWS))
    for number in range(COUNT // 20):
        how, datagrams, news = chance.choice(BREAKS), list(RULES), chance.choice(NEWS)
        victim = chance.randrange(len(datagrams))
        broken = how(chance, datagrams[victim], list(netlink_lengths(datagrams[victim])))
        datagrams[victim] = broken.message
        there = table_is_there(datagrams)
        what = f"{number}: {how.__name__}, {broken.message.hex()}: {there}"
        assert isinstance(there, bool | IpsecGwError), what
        assert not (broken.told and there is True and how is cut), what
        broken = how(chance, news, list(netlink_lengths(news)))
        touched = CONCERN.touched_by(broken.message)
        assert touched or not (broken.told and how is cut), f"{number}: {broken.message.hex()}"
