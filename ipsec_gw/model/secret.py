"""Key material that cannot be printed by accident."""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Bytes whose ``repr``, ``str`` and ``format`` are redacted and which cannot be pickled.

    Equality is constant time. Read the bytes with :meth:`reveal`, at the place that hands them to
    the kernel or to an engine and nowhere else.
    """

    __slots__ = ("_value",)

    def __init__(self, value: bytes) -> None:
        self._value = bytes(value)

    def reveal(self) -> bytes:
        """The key bytes."""
        return self._value

    def is_zero(self) -> bool:
        """True for a key of zeros only: the kernel blanks keys under lockdown (confidentiality)."""
        return not any(self._value)

    def __len__(self) -> int:
        return len(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._value, other._value)

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "Secret(<redacted>)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return format(repr(self), spec)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")
