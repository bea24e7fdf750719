"""One compiled pipeline for all tests of xdp_steer, and a namespace for each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from firewall_kit import World, firewall_world
from xdp_kit import BPFFS, Wire, clear_entries, ip, namespace

from xdp_steer.gateway import Steering


@pytest.fixture(scope="session")
def bpffs() -> Path:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    if not BPFFS.is_mount():
        subprocess.run(["mount", "-t", "bpf", "bpf", str(BPFFS)], check=True)
    return BPFFS


@pytest.fixture(scope="session")
def pins(bpffs: Path) -> Iterator[Path]:
    """One pin directory, so one compile, for the whole session."""
    path = bpffs / f"ipsec-gw-test-{os.getpid()}"
    yield path
    Steering.remove_leftovers(path)


@pytest.fixture(scope="module")
def arena(pins: Path) -> Iterator[World]:
    """The firewall between made-up interfaces, one for each file of tests."""
    with firewall_world(pins) as made:
        yield made


@pytest.fixture
def world(arena: World) -> World:
    """The same without sessions and what other tests have counted."""
    arena.clear()
    return arena


@pytest.fixture
def net() -> Iterator[None]:
    with namespace(f"xdp{os.getpid()}"):
        yield


@pytest.fixture
def steering(pins: Path, net: None) -> Iterator[Steering]:
    """An open Steering in an empty namespace, entries and docks of other tests gone."""
    opened = Steering.open(pins, hold_ms=0)
    opened.set_engine(False)
    clear_entries(opened)
    yield opened
    with suppress(OSError):  # the test may have closed it
        for interface in opened.docked():
            opened.undock(interface)
        opened.close()


@pytest.fixture
def wire(net: None) -> Iterator[Wire]:
    ip("link add wan9 type veth peer name far9")
    for name in ("lo", "wan9", "far9"):
        ip(f"link set {name} up")
    made = Wire("wan9", "far9")
    yield made
    made.close()
