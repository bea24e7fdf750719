"""sd_notify(3): tell systemd that we are ready, how we are, that we live, and that we stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator

OFF_CODE = 3
"""Exit code of the daemon after `ipsec-gw off`: its unit starts it again after any other end, but not after this."""


def notify(*lines: str) -> None:
    """Send ``READY=1``, ``STATUS=...`` and the like. Does nothing when not started by systemd."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.connect(address)
        channel.sendall("\n".join(lines).encode())


@contextlib.asynccontextmanager
async def watched() -> AsyncIterator[None]:
    """Show systemd's watchdog meanwhile that the event loop runs, twice as often as it asks for
    (sd_watchdog_enabled(3)). Does nothing when it does not ask this process.
    """
    asked = os.environ.get("WATCHDOG_USEC", "")
    other = os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid())
    if other or not asked.isdecimal() or not int(asked):
        yield
        return
    showing = asyncio.create_task(_show_life(int(asked) / 2e6), name="systemd's watchdog")
    try:
        yield
    finally:
        showing.cancel()


async def _show_life(seconds: float) -> None:
    while True:
        notify("WATCHDOG=1")
        await asyncio.sleep(seconds)
