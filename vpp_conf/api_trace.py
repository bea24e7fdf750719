"""The last messages that the gateway sent to VPP, without keys: what VPP was told before it died.

VPP has a trace of its own (``api-trace``), which holds whole messages, and so the keys of all SAs. This one never has
them: of messages with keys it takes two numbers, of all others only what is a number, an address or a short word.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

MOST_ROWS = 512
LONGEST_WORD = 64
LONGEST_LIST = 8
KEY_MESSAGES = "ipsec_sad_entry_add"
"""How the names of messages begin that hold keys."""

KEYLESS_FIELDS = ("sad_id", "spi")
"""All that is taken of those: an SA's salt is a number as well."""


class ApiTrace:
    """A ring of lines. The same message with the same outcome again and again is one line with a number.

    It may be read in one thread while another one adds to it.
    """

    def __init__(self) -> None:
        self._rows: deque[tuple[float, str, int]] = deque(maxlen=MOST_ROWS)
        self._lock = threading.Lock()

    def add(self, message: str, fields: Mapping[str, Any], outcome: str) -> None:
        """A request that was answered, or was not."""
        line = f"{message} {_fields(message, fields)}{outcome}"
        with self._lock:
            if self._rows and self._rows[-1][1] == line:
                self._rows[-1] = (time.time(), line, self._rows[-1][2] + 1)
            else:
                self._rows.append((time.time(), line, 1))

    def text(self) -> str:
        """The oldest first; times are those of the last answer."""
        with self._lock:
            rows = tuple(self._rows)
        return "".join(
            f"{datetime.fromtimestamp(when, UTC).isoformat(timespec='milliseconds')} {line}"
            + (f" ({times} times)\n" if times > 1 else "\n")
            for when, line, times in rows
        )


def _fields(message: str, fields: Mapping[str, Any]) -> str:
    if message.startswith(KEY_MESSAGES):
        entry = fields.get("entry", {})
        fields = {name: entry[name] for name in KEYLESS_FIELDS if name in entry}
    return "".join(f"{name}={_value(value)} " for name, value in fields.items())


def _value(value: object) -> str:
    """Bytes never, nor what cannot be told from bytes."""
    match value:
        case bool() | int() | float() | IPv4Address() | IPv6Address() | IPv4Network() | IPv6Network():
            return str(value)
        case str():
            return repr(value if len(value) <= LONGEST_WORD else f"{value[:LONGEST_WORD]}...")
        case dict():
            return "{" + " ".join(f"{name}={_value(one)}" for name, one in value.items()) + "}"
        case list() | tuple():
            more = " ..." if len(value) > LONGEST_LIST else ""
            return "[" + " ".join(_value(one) for one in value[:LONGEST_LIST]) + f"{more}]"
        case _:
            return f"<{type(value).__name__}>"
