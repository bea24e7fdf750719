"""Queues as the kernel tells them, on interfaces of a namespace of our own."""

from __future__ import annotations

import subprocess
import sys
import uuid

import pytest

from ipsec_gw.engines.soft.queues import rx_queues
from ipsec_gw.errors import EngineUnavailable


@pytest.mark.parametrize("name", ["nosuchif0", "a-name-that-is-too-long"])
def test_an_interface_that_does_not_exist(name):
    with pytest.raises(EngineUnavailable, match=f"interface {name}"):
        rx_queues(name)


def test_a_driver_without_queues_has_one():
    assert rx_queues("lo") == 1


@pytest.fixture
def namespace():
    name = f"softq-{uuid.uuid4().hex[:8]}"
    run("ip", "netns", "add", name)
    yield name
    run("ip", "netns", "del", name)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.root
@pytest.mark.parametrize(("given", "queues"), [((), 1), (("numrxqueues", "1"), 1), (("numrxqueues", "3"), 3)])
def test_a_veth_has_as_many_as_it_uses(namespace, given, queues):
    """Asked after setns(2), where /sys still shows the old namespace; by default a veth allocates more than it uses."""
    run("ip", "-n", namespace, "link", "add", "name", "softq0", *given, "type", "veth", "peer", "name", "softq1")
    code = "from ipsec_gw.engines.soft.queues import rx_queues; print(rx_queues('softq0'))"
    assert run("nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-c", code).strip() == str(queues)
