"""VPP's binary API for asyncio: vpp_papi in a thread, one request at a time, errors with names.

vpp_papi is synchronous and talks to its socket from a thread of its own. Every call here runs by
``asyncio.to_thread`` under a lock and a time-out. A lost connection is reported once as
:class:`~ipsec_gw.errors.EngineUnavailable`; after that :meth:`VppApi.connect` has to be called again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from pathlib import Path
from typing import Any

from ipsec_gw.errors import EngineError, EngineUnavailable
from vpp_conf.api_trace import KEY_MESSAGES, ApiTrace
from vpp_conf.process import ProcessId, identify

CLIENT_NAME = "ipsec-gw"
REPLY_SECONDS = 10.0
PID_BITS = 32

MODULES = frozenset(
    {
        "af_xdp",
        "classify",
        "gre",
        "interface",
        "ip",
        "ip6_nd",
        "ip_neighbor",
        "ipip",
        "ipsec",
        "l2",
        "memclnt",
        "nat44_ed",
        "punt",
        "vlib",
        "vpe",
        "vxlan",
    }
)
"""Where the messages are from that this gateway sends: each has a file of definitions (``NAME.api.json``). Those of all
of VPP take longer to read than all else of a connection takes.
"""

# vpp_papi writes every message it sends into its debug log, keys included: it gets a logger that is off.
_SILENT = logging.Logger("ipsec-gw-papi", level=logging.CRITICAL + 1)


def definitions(api_dir: Path) -> list[str]:
    """The files of :data:`MODULES`; a plugin that is not installed has none."""
    return sorted(str(path) for path in api_dir.rglob("*.api.json") if path.name.partition(".")[0] in MODULES)


class VppApiError(EngineError):
    """VPP refused a request. ``retval`` is its ``vnet_api_error`` number."""

    def __init__(self, message: str, retval: int) -> None:
        super().__init__(message)
        self.retval = retval


class VppApi:
    """A connection to the VPP behind the socket ``path``; ``api_dir`` holds its message definitions (JSON)."""

    def __init__(self, path: Path, api_dir: Path | None, timeout: float = REPLY_SECONDS) -> None:
        self._socket = path
        self._api_dir = api_dir
        self._timeout = timeout
        self._lock = asyncio.Lock()
        self._client: Any = None
        self._epoch = 0
        self._version = ""
        self.trace = ApiTrace()

    @property
    def connected(self) -> bool:
        """False before :meth:`connect` and after a lost connection."""
        return self._client is not None

    @property
    def epoch(self) -> int:
        """Identity of the VPP process that was connected last: its start time and PID. 0 before the first."""
        return self._epoch

    @property
    def process(self) -> ProcessId:
        """The VPP process that was connected last."""
        return ProcessId(self._epoch & ((1 << PID_BITS) - 1), self._epoch >> PID_BITS)

    @property
    def version(self) -> str:
        """VPP's version as it tells it, empty before the first connect."""
        return self._version

    def knows(self, message: str) -> bool:
        """Whether the VPP that is connected takes a message: those of a plugin come with it."""
        return self._client is not None and hasattr(self._client.api, message)

    async def connect(self) -> None:
        """Connect, unless connected to a VPP that answers. Raises EngineUnavailable if nothing answers."""
        if self._client is not None:
            try:
                await self.call("control_ping")
                return
            except EngineUnavailable:
                pass  # the VPP of this connection is gone; there may be another one by now
        async with self._lock:
            try:
                self._client = await asyncio.to_thread(self._open)
            except (OSError, ValueError, struct.error) as error:
                raise EngineUnavailable(
                    f"VPP does not answer on {self._socket} ({error}) - is it running? (`ipsec-gw vpp up`)"
                ) from None
        ping = await self.call("control_ping")
        process = identify(ping.vpe_pid)
        self._epoch = ((process.start if process else 0) << PID_BITS) | ping.vpe_pid
        self._version = str((await self.call("show_version")).version)

    async def close(self) -> None:
        """Disconnect; nothing in VPP changes."""
        async with self._lock:
            await self._drop()

    async def call(self, message: str, **fields: Any) -> Any:
        """One request, one reply. Raises VppApiError if VPP refuses, EngineUnavailable if it is gone or hangs."""
        reply = await self._request(message, fields)
        retval = getattr(reply, "retval", 0)
        self.trace.add(message, fields, str(retval))
        if retval < 0:
            raise VppApiError(f"VPP refused {message}: {self._retval_text(retval)} ({retval})", retval)
        return reply

    async def dump(self, message: str, **fields: Any) -> list[Any]:
        """All details that a ``*_dump`` returns."""
        details = list(await self._request(message, fields))
        self.trace.add(message, fields, f"{len(details)} details")
        return details

    async def cli(self, command: str) -> str:
        """What VPP's debug CLI prints. Only for what no API message tells."""
        return str((await self.call("cli_inband", cmd=command)).reply)

    async def _request(self, message: str, fields: dict[str, Any]) -> Any:
        async with self._lock:
            if self._client is None:
                raise EngineUnavailable(f"not connected to VPP, {message} was not sent - is it running?")
            try:
                return await asyncio.to_thread(self._send, self._client, message, fields)
            except OSError as error:
                await self._drop(gone=True)
                self.trace.add(message, fields, "no answer")
                raise EngineUnavailable(f"VPP did not answer {message} ({error}) - it died or hangs") from None
            except (ValueError, struct.error, AttributeError) as error:
                # The text may quote what could not be packed: not for a message with keys.
                reason = type(error).__name__ if message.startswith(KEY_MESSAGES) else str(error)
                raise EngineError(f"VPP's API does not take {message} as sent ({reason})") from None

    def _open(self) -> Any:
        from vpp_papi import VPPApiClient  # noqa: PLC0415 - slow to import, and only VPP users need it

        client = VPPApiClient(
            apifiles=definitions(self._api_dir) if self._api_dir else None,
            bootstrapapi=self._api_dir is None,
            server_address=str(self._socket),
            read_timeout=self._timeout,
            logger=_SILENT,
        )
        client.connect(CLIENT_NAME)
        return client

    @staticmethod
    def _send(client: Any, message: str, fields: dict[str, Any]) -> Any:
        return getattr(client.api, message)(**fields)

    async def _drop(self, gone: bool = False) -> None:
        client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(_disconnect, client, gone)

    @staticmethod
    def _retval_text(retval: int) -> str:
        from vpp_papi import VppEnum  # noqa: PLC0415 - as above

        errors = getattr(VppEnum, "vl_api_vnet_api_error_t", None)
        return RETVALS.get(retval) or (str(errors(retval).name) if errors else "error")


RETVALS = {
    -1: "unspecified error",
    -2: "no such interface",
    -3: "no such FIB",
    -6: "no such entry",
    -7: "invalid value",
    -8: "invalid value (2)",
    -9: "unimplemented",
    -11: "system call failed",
    -116: "entry already exists",
}
"""The few answers of ``vnet/api_errno.h`` that this gateway meets; others are printed as their number."""


def _disconnect(client: Any, gone: bool) -> None:
    """Disconnect politely, or at once from a VPP that does not answer (vpp_papi would wait for it once more)."""
    try:
        if gone:
            client.transport.socket.shutdown(socket.SHUT_RDWR)
        client.disconnect()
    except (OSError, ValueError, AttributeError):
        # The other end is gone; there is nothing left to tell it.
        return
