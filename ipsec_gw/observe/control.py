"""The daemon's own socket: one JSON line asks, one JSON line answers. ``control.sock`` in the runtime directory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog

from ipsec_gw.errors import EnvironmentMissing, IpsecGwError

log = structlog.get_logger()

Handler = Callable[[str], Awaitable[Any]]

_MODE = 0o600
_MAX_LINE = 64 << 20
_ANSWER_SECONDS = 60.0


def socket_path(run_dir: Path) -> Path:
    """Where the daemon of this runtime directory listens."""
    return run_dir / "control.sock"


async def serve(run_dir: Path, handler: Handler) -> asyncio.Server:
    """Listen. ``handler`` gets the question and returns what ``json`` can print; IpsecGwError becomes an answer too."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            question = (await reader.readline()).decode("utf-8", "replace").strip()
            try:
                reply: dict[str, Any] = {"ok": await handler(question)}
            except IpsecGwError as error:
                reply = {"error": str(error)}
            except Exception:
                # A defect in a view must not leave the asker waiting, nor end the daemon.
                log.exception("a question could not be answered", question=question)
                reply = {"error": f"the daemon failed at '{question}' - its log tells why"}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    path = socket_path(run_dir)
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(answer, path)
    path.chmod(_MODE)
    return server


def ask(run_dir: Path, question: str) -> Any:
    """Ask the daemon. Raises EnvironmentMissing if none runs here, IpsecGwError if it refused."""
    path = socket_path(run_dir)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_ANSWER_SECONDS)
        try:
            channel.connect(str(path))
            channel.sendall(question.encode() + b"\n")
            raw = channel.makefile("rb").readline(_MAX_LINE)
        except (FileNotFoundError, ConnectionRefusedError):
            raise EnvironmentMissing(f"no daemon listens on {path} - start it with `ipsec-gw run`") from None
        except OSError as error:
            raise EnvironmentMissing(f"the daemon on {path} does not answer ({error}) - see its log") from None
    reply = json.loads(raw or b"{}")
    if "error" in reply:
        raise IpsecGwError(reply["error"])
    return reply.get("ok")


def listening(run_dir: Path) -> bool:
    """True if a daemon answers on this runtime directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(_ANSWER_SECONDS)
        return channel.connect_ex(str(socket_path(run_dir))) == 0
