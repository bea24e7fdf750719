"""Path MTU discovery with datagrams that nobody may fragment."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable
from contextlib import closing, suppress

from ipsec_gw.lab.talk import IP_MTU, IP_MTU_DISCOVER, IPV6_MTU, IPV6_MTU_DISCOVER, SECONDS, Address, endpoint
from ipsec_gw.lab.topology import MTU
from ipsec_gw.lab.traffic import Host, TrafficError, until

PMTUDISC_DO = 2
"""``linux/in.h``, ``linux/in6.h``: never fragment, obey what is told."""

LONGEST = 1 << 16


async def discovered(client: Host, called: tuple[Address, int], server: Host, *, back: bool = False) -> int:
    """The path MTU in bytes that the client learns, or the server about the way back, from datagrams as long as the
    link takes. One that fits into it has come over whole. Raises TrafficError.
    """
    what = f"path MTU between {client} and {called[0]} port {called[1]}"
    with (
        closing(endpoint(server, socket.SOCK_DGRAM, called[1])) as answering,
        closing(endpoint(client, socket.SOCK_DGRAM)) as caller,
    ):
        try:
            async with asyncio.timeout(SECONDS):
                caller.connect((str(called[0]), called[1]))
                caller.send(b"the way there")
                _, peer = await asyncio.get_running_loop().sock_recvfrom(answering, LONGEST)
                answering.connect(peer)
                return await (_discover(answering, caller, what) if back else _discover(caller, answering, what))
        except (TimeoutError, OSError) as error:
            raise TrafficError(f"{what}: {error or f'nothing within {SECONDS:.0f} s'}") from error


async def _discover(speaker: socket.socket, listener: socket.socket, what: str) -> int:
    six = speaker.family == socket.AF_INET6
    level, discover, known, headers = (
        (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_MTU, 48)
        if six
        else (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_MTU, 28)
    )
    speaker.setsockopt(level, discover, PMTUDISC_DO)

    def learnt() -> bool:
        with suppress(OSError):  # too long, as was told meanwhile
            speaker.send(bytes(MTU - headers))
        return speaker.getsockopt(level, known) < MTU

    await until(learnt, SECONDS, f"{what}: an error that tells it")
    mtu = speaker.getsockopt(level, known)
    fitting = random.Random(mtu).randbytes(mtu - headers)  # noqa: S311 - repeatable, not secret
    await until(_comes_over(speaker, listener, fitting), SECONDS, f"{what}: {mtu} bytes come over")
    return mtu


def _comes_over(speaker: socket.socket, listener: socket.socket, data: bytes) -> Callable[[], bool]:
    """Sends until it is there: the errors about longer ones may still be on their way."""

    def there() -> bool:
        with suppress(OSError):
            speaker.send(data)
        with suppress(BlockingIOError):
            return listener.recv(LONGEST) == data
        return False

    return there
