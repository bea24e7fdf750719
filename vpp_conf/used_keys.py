"""Outbound keys that may have encrypted: no second SA may use them (nonces, sequence numbers)."""

from __future__ import annotations

import hashlib
import secrets

from ipsec_gw.errors import UsedKeyError
from ipsec_gw.model.ids import SaKey
from ipsec_gw.model.objects import EngineSa

PEPPER_BYTES = 32


class UsedKeys:
    """Fingerprints of keys, by a secret of this process: they say nothing to anybody else."""

    def __init__(self) -> None:
        self._pepper = secrets.token_bytes(PEPPER_BYTES)
        self._owners: dict[bytes, SaKey] = {}

    def refuse(self, sa: EngineSa) -> None:
        """Raises UsedKeyError if the key belongs to an SA that sends or has sent, under whatever SPI."""
        owner = self._owners.get(self._fingerprint(sa))
        if owner is not None:
            raise UsedKeyError(f"SA {sa.key} has the key of {owner}, and a key sends once - rekey the CHILD_SA")

    def remember(self, sa: EngineSa) -> None:
        """From now on the key belongs to an SA that may send."""
        self._owners[self._fingerprint(sa)] = sa.key

    def forget(self, sa: EngineSa) -> None:
        """The SA is gone and never sent: its key is as good as new."""
        self._owners.pop(self._fingerprint(sa), None)

    def _fingerprint(self, sa: EngineSa) -> bytes:
        return hashlib.blake2b(sa.secret.reveal() + sa.salt.reveal(), key=self._pepper).digest()
