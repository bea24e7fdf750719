"""Outbound SAs whose key must not be given to the engine (any more), and the rekeys that bring fresh ones."""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from ipsec_gw.model.ids import SaKey
from ipsec_gw.ownership.rekey import RekeyPacer

log = structlog.get_logger()


class Refusals:
    """Reasons by SA. The first reason stays: what follows from it is no news."""

    def __init__(self, pacer: RekeyPacer) -> None:
        self.pacer = pacer
        self._reasons: dict[SaKey, str] = {}

    def add(self, key: SaKey, reason: str) -> None:
        """Never give this SA to the engine again, and ask charon for a rekey."""
        if key not in self._reasons:
            log.info("outbound SA stays in the kernel", sa=str(key), reason=reason)
            self._reasons[key] = reason
            self.pacer.request(key)

    def reasons(self) -> Mapping[SaKey, str]:
        """All of them."""
        return self._reasons

    def settle(self, alive: frozenset[SaKey]) -> None:
        """Forget SAs that are gone."""
        self._reasons = {key: why for key, why in self._reasons.items() if key in alive}
        self.pacer.settle(alive.__contains__)
