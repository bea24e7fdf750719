"""The world of the contract tests with the real VPP beside it, its interfaces docked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contract.world import World
from vpp_conf import lifecycle

BPFFS = Path("/sys/fs/bpf")


@contextmanager
def docked_world(run_dir: Path, name: str) -> Iterator[World]:
    """No VPP runs yet; none runs afterwards. ``name`` tells the namespaces and pins of a test's file from others."""
    if not BPFFS.is_mount():
        pytest.skip("no bpffs - mount -t bpf bpf /sys/fs/bpf")
    with World(run_dir, name, BPFFS / f"ipsec-gw-{name}-{os.getpid()}") as built:
        try:
            yield built
        finally:
            lifecycle.down(run_dir)
