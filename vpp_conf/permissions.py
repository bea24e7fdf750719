"""Who may open the sockets of a VPP, and who has them already."""

from __future__ import annotations

import grp
import os
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ipsec_gw.errors import EngineError
from vpp_conf.paths import VppPaths
from vpp_conf.startup.plan_sockets import ROOT_GROUP
from vpp_conf.startup.values import SocketPlan

_FOLDER, _FOLDER_SHARED = 0o700, 0o710
_PASSAGE = 0o001
_PEER = struct.Struct("3i")
"""``struct ucred``: pid, uid, gid (unix(7), SO_PEERCRED)."""


def group_name(gid: int) -> str:
    """The name of a group, its number if it has none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def close_folder(paths: VppPaths) -> None:
    """Nobody but root gets at what VPP makes while it starts: its sockets are born with wider permissions."""
    paths.folder.chmod(_FOLDER)


def open_sockets(paths: VppPaths, sockets: Sequence[SocketPlan]) -> None:
    """Give the sockets of a VPP that has started their permissions, and then the way to them to those who may.

    Raises EngineError naming a group that is gone. A socket that is not there is left to whoever looks for it.
    """
    shared = {one.group for one in sockets} - {ROOT_GROUP}
    for one in sockets:
        with suppress(FileNotFoundError):
            os.chown(paths.folder / one.name, 0, _gid(one.group))
            (paths.folder / one.name).chmod(one.mode)
    for group in shared:
        os.chown(paths.folder, 0, _gid(group))
        paths.folder.chmod(_FOLDER_SHARED)
        paths.run_dir.chmod(paths.run_dir.stat().st_mode | _PASSAGE)


def refuse_taken(paths: VppPaths) -> None:
    """Raises EngineError if somebody listens on one of the sockets, naming both.

    For a start, where no VPP of ours is recorded: another one would run beside it.
    """
    for path in paths.sockets:
        pid = _listener(path)
        if pid is not None:
            raise EngineError(
                f"socket {path} is taken: process {pid} listens on it and is no VPP that was started here - end it, or "
                "choose another --run-dir"
            )


def _listener(path: Path) -> int | None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET):
        with socket.socket(socket.AF_UNIX, kind) as client, suppress(OSError):
            client.settimeout(1.0)
            client.connect(str(path))
            return int(_PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))[0])
    return None


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise EngineError(f"there is no group {group} - groupadd --system {group}") from None
