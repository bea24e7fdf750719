"""sd_notify(3): tell systemd that we are ready, how we are, and that we stop."""

from __future__ import annotations

import os
import socket

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
