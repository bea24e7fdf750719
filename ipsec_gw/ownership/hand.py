"""The operator's hand: what `ipsec-gw fallback` moved to the kernel stays there until `ipsec-gw return`.

Written down in the runtime directory, so that a restart of the daemon changes nothing.
"""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from ipsec_gw.desired import Moved
from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.ids import TunnelId
from ipsec_gw.model.snapshot import Snapshot

FILE = "fallback.json"
FALLBACK, RETURN = "fallback", "return"
_SA, _CONNECTION = "sa", "connection"
_WAY_OUT = "see `ipsec-gw show sas`"


def question(command: str, sa: str | None, connection: str | None) -> str:
    """What the control socket is asked: the command, and what it is for."""
    return " ".join([command, *((_SA, sa) if sa else ()), *((_CONNECTION, connection) if connection else ())])


def answer(words: str, moved: Moved, snapshot: Snapshot) -> Moved:
    """What is moved after a question. Raises IpsecGwError for one that names nothing, or nothing that is moved."""
    command, _, target = words.partition(" ")
    kind, _, name = target.partition(" ")
    if command == FALLBACK:
        return _fallback(kind, name, moved, snapshot)
    return _back(kind, name, moved, snapshot)


def _fallback(kind: str, name: str, moved: Moved, snapshot: Snapshot) -> Moved:
    if kind == _SA:
        return replace(moved, tunnels=moved.tunnels | {_tunnel_of(name, snapshot)})
    if kind == _CONNECTION:
        if name not in {child.connection for child in snapshot.names.values()}:
            raise IpsecGwError(f"no SA of a connection '{name}' is there - {_WAY_OUT}")
        return replace(moved, connections=moved.connections | {name})
    return replace(moved, everything=True)


def _back(kind: str, name: str, moved: Moved, snapshot: Snapshot) -> Moved:
    if kind and moved.everything:
        raise IpsecGwError("everything was moved to the kernel, not one by one - `ipsec-gw return` without an option")
    if kind == _SA:
        tunnel = _tunnel_of(name, snapshot)
        if tunnel not in moved.tunnels:
            raise IpsecGwError(f"the tunnel of SA {name} was not moved by its SA - {_WAY_OUT}")
        return replace(moved, tunnels=moved.tunnels - {tunnel})
    if kind == _CONNECTION:
        if name not in moved.connections:
            raise IpsecGwError(f"connection '{name}' was not moved - {_WAY_OUT}")
        return replace(moved, connections=moved.connections - {name})
    return Moved()


def _tunnel_of(name: str, snapshot: Snapshot) -> TunnelId:
    """The tunnel of an SPI in hexadecimal digits."""
    try:
        spi = int(name.removeprefix("0x"), 16)
    except ValueError:
        raise IpsecGwError(f"{name} is no SPI - eight hexadecimal digits, {_WAY_OUT}") from None
    for sa in snapshot.sas:
        if sa.key.spi == spi:
            inbound = sa.key.destination in snapshot.local_addresses
            return TunnelId(sa.reqid, sa.source if inbound else sa.key.destination)
    raise IpsecGwError(f"no SA has the SPI {name} - {_WAY_OUT}")


def load(run_dir: Path) -> Moved:
    """What an earlier daemon wrote down; nothing if that cannot be read."""
    try:
        raw = json.loads((run_dir / FILE).read_text(encoding="utf-8"))
        return Moved(
            everything=bool(raw["everything"]),
            connections=frozenset(map(str, raw["connections"])),
            tunnels=frozenset(TunnelId(int(reqid), ip_address(remote)) for reqid, remote in raw["tunnels"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return Moved()


def save(run_dir: Path, moved: Moved) -> None:
    """Write it down, whole or not at all. Raises IpsecGwError."""
    path = run_dir / FILE
    fresh = path.with_suffix(".new")
    written = {
        "everything": moved.everything,
        "connections": sorted(moved.connections),
        "tunnels": [[tunnel.reqid, str(tunnel.remote)] for tunnel in sorted(moved.tunnels, key=str)],
    }
    try:
        fresh.write_text(json.dumps(written) + "\n", encoding="utf-8")
        fresh.replace(path)
    except OSError as error:
        raise IpsecGwError(f"{path} cannot be written ({error.strerror}): nothing was moved") from None


def forget(run_dir: Path) -> None:
    """Remove what is written down."""
    (run_dir / FILE).unlink(missing_ok=True)
