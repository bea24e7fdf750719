"""A charon that only answers vici, for tests of the daemon: `python -m tests.support.charon SOCKET [hang]`."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from vici.protocol import Packet

from tests.unit.test_vici import charon, frame, healthy


def without_sas(kind: int, name: str) -> list[bytes]:
    """Healthy, with connections but no SAs."""
    if kind == Packet.CMD_REQUEST and name == "list-sas":
        return [frame(Packet.CMD_RESPONSE)]
    return healthy(kind, name)


async def serve(path: Path, *, hang: bool) -> None:
    """Serve until killed."""
    async with charon(path, (lambda _kind, _name: []) if hang else without_sas):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), hang=sys.argv[2:] == ["hang"]))
