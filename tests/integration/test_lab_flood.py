"""The lab's generator of frames: one system call for many of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from ipsec_gw.lab.flood import BATCH, Sender

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]


@pytest.fixture
def wire() -> Iterator[str]:
    """A namespace with a veth pair, one and other, that are up."""
    name = f"igwt-flood-{os.getpid()}"
    lines = ("link add one type veth peer name other", "link set one up", "link set other up")
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for line in lines:
            subprocess.run(["ip", "-n", name, *line.split()], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_a_batch_takes_one_call_and_the_templates_come_again_and_again(wire: str) -> None:
    frames = [b"\xff" * 12 + b"\x88\xb5" + bytes([number % 256]) * 50 for number in range(BATCH + 44)]
    sender = Sender(wire, "one", frames)
    try:
        assert [sender.send(len(frames)) for _ in range(4)] == [BATCH, 44, BATCH, 44]
        assert sender.send(10) == 10
        sender.rewind()
        assert sender.send(len(frames)) == BATCH
    finally:
        sender.close()
