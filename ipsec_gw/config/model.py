"""The configuration file's shape (TOML). Everything is optional: without a file the defaults hold."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from ipsec_gw.ike.vici import DEFAULT_SOCKET


class EngineChoice(StrEnum):
    """``auto`` is VPP where one runs, else the kernel."""

    AUTO = "auto"
    VPP = "vpp"
    SOFT = "soft"
    KERNEL = "kernel"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GatewayConfig(_Section):
    """``[gateway]``. An empty ``wan`` means: the interfaces that hold the local tunnel addresses."""

    engine: EngineChoice = EngineChoice.AUTO
    wan: tuple[str, ...] = ()
    vici: str = DEFAULT_SOCKET
    vici_timeout: float = Field(default=10.0, gt=0, le=600)


class ConnectionConfig(_Section):
    """``[connections.NAME]``, by the name that swanctl.conf gives the connection."""

    accelerate: bool = True


class Config(_Section):
    """The whole file."""

    gateway: GatewayConfig = GatewayConfig()
    connections: dict[str, ConnectionConfig] = Field(default_factory=dict)

    @property
    def kept(self) -> frozenset[str]:
        """Connections that stay in the kernel."""
        return frozenset(name for name, connection in self.connections.items() if not connection.accelerate)
