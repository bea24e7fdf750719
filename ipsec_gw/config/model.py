"""The configuration: the gateway's options, and the firewall if there is one. Everything is optional."""

from __future__ import annotations

from enum import StrEnum

from pydantic import ConfigDict, Field, InstanceOf

from ipsec_gw.config.section import Section
from ipsec_gw.ike.vici import DEFAULT_SOCKET
from ipsec_gw.model.firewall import Ruleset


class EngineChoice(StrEnum):
    """``auto`` is VPP where one runs, else the kernel."""

    AUTO = "auto"
    VPP = "vpp"
    SOFT = "soft"
    KERNEL = "kernel"


class _Converted(Section):
    """Strings become members of enumerations, lists become tuples."""

    model_config = ConfigDict(strict=False)


class GatewayConfig(_Converted):
    """``[gateway]``. An empty ``wan`` means: the interfaces that hold the local tunnel addresses.

    ``hang_seconds`` is how long VPP may show no sign of life before it is ended and the kernel takes over; 0 for ever.
    """

    engine: EngineChoice = EngineChoice.AUTO
    wan: tuple[str, ...] = ()
    vici: str = DEFAULT_SOCKET
    vici_timeout: float = Field(default=10.0, gt=0, le=600)
    hang_seconds: float = Field(default=0.5, ge=0, le=600)


class ConnectionConfig(_Converted):
    """``[connections.NAME]``, by the name that swanctl.conf gives the connection."""

    accelerate: bool = True


class Config(_Converted):
    """The whole file. ``firewall`` is None when it defines no zones: then nothing is filtered or translated."""

    gateway: GatewayConfig = GatewayConfig()
    connections: dict[str, ConnectionConfig] = Field(default_factory=dict)
    firewall: InstanceOf[Ruleset] | None = None

    @property
    def kept(self) -> frozenset[str]:
        """Connections that stay in the kernel."""
        return frozenset(name for name, connection in self.connections.items() if not connection.accelerate)
