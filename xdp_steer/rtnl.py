"""Short questions to the kernel's rtnetlink, also from inside an event loop; and what links are asked for."""

from __future__ import annotations

import errno
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from pyroute2 import IPRoute, NetlinkError

from ipsec_gw.errors import SteeringError

Result = TypeVar("Result")


def ask(work: Callable[[IPRoute], Result]) -> Result:
    """pyroute2's plain calls run an event loop, which a caller inside asyncio already has: give them a thread.

    A new thread is in the network namespace of the one that starts it.
    """

    def run() -> Result:
        with IPRoute() as ipr:
            return work(ipr)

    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(run).result()


def link_mtu(ifindex: int) -> int:
    """The MTU of an interface in bytes, 0 if it is gone. Raises SteeringError."""
    try:
        return ask(lambda ipr: int(ipr.get_links(ifindex)[0].get("mtu")))
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return 0
        raise SteeringError(f"interface {ifindex} cannot be read ({error}) - see `ip link`") from error


def set_link_mtu(ifindex: int, mtu: int) -> None:
    """Set it, in bytes. An interface that is gone is no error. Raises SteeringError."""
    try:
        ask(lambda ipr: ipr.link("set", index=ifindex, mtu=mtu))
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise SteeringError(f"MTU {mtu} of interface {ifindex} was refused ({error}) - see `ip link`") from error
