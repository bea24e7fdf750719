"""The configuration: the gateway's options, and the firewall if there is one. Everything is optional."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import ConfigDict, Field, InstanceOf, field_validator, model_validator

from ipsec_gw.config.problems import Refused
from ipsec_gw.config.section import Section
from ipsec_gw.ike.vici import DEFAULT_SOCKET
from ipsec_gw.model.choices import WHOLE, Choices, PolicyMode
from ipsec_gw.model.firewall import Ruleset

LEAST_AWAY_SECONDS = 5.0
"""The daemon shows itself twice a second, and comes back in a second or two."""


class EngineChoice(StrEnum):
    """``auto`` is VPP where one runs, else the kernel."""

    AUTO = "auto"
    VPP = "vpp"
    SOFT = "soft"
    KERNEL = "kernel"


class VppLife(StrEnum):
    """``always``: VPP is started by hand or by its unit, and stays. ``needed``: the daemon starts it for the first SA
    that it can carry, and stops it a while after the last one.
    """

    ALWAYS = "always"
    NEEDED = "needed"


class Mode(StrEnum):
    """``observe``: everything is read, decided and shown, and nothing is carried by the engine."""

    ACCELERATE = "accelerate"
    OBSERVE = "observe"


class _Converted(Section):
    """Strings become members of enumerations, lists become tuples."""

    model_config = ConfigDict(strict=False)


class GatewayConfig(_Converted):
    """``[gateway]``. An empty ``wan`` means: the interfaces that hold the local tunnel addresses. ``canary`` is the
    percent of the peers that are accelerated.

    ``vpp_idle_seconds`` is how long a VPP that runs while it is needed may have nothing to carry before it is stopped.
    ``hang_seconds`` after the last sign of life of VPP it has been ended and the kernel carries its tunnels; 0: never.
    ``hold_seconds`` is how long packets of a new SA may wait until it is decided who carries it.
    ``policy_mode`` holds for tunnels that VPP gets from then on. A daemon that has been silent for
    ``daemon_away_seconds`` leaves what goes out to the kernel; 0: never.
    """

    engine: EngineChoice = EngineChoice.AUTO
    mode: Mode = Mode.ACCELERATE
    canary: int = Field(default=WHOLE, ge=0, le=WHOLE)
    wan: tuple[str, ...] = ()
    vici: str = DEFAULT_SOCKET
    vici_timeout: float = Field(default=10.0, gt=0, le=600)
    hang_seconds: float = Field(default=0.5, ge=0, le=600)
    hold_seconds: float = Field(default=2.0, ge=0, le=60)
    daemon_away_seconds: float = Field(default=60.0, ge=0, le=600)
    policy_mode: PolicyMode = PolicyMode.AUTO
    vpp: VppLife = VppLife.ALWAYS
    vpp_idle_seconds: float = Field(default=300.0, ge=1, le=86400)

    @field_validator("daemon_away_seconds")
    @classmethod
    def _longer_than_a_pause(cls, seconds: float) -> float:
        if 0 < seconds < LEAST_AWAY_SECONDS:
            raise Refused(
                f"daemon_away_seconds = {seconds:g} is less than a daemon may be late or takes to come back",
                f"take {LEAST_AWAY_SECONDS:g} at least, or 0 for never",
            )
        return seconds

    @model_validator(mode="after")
    def _vpp_is_in_use(self) -> Self:
        for name, asked in (("vpp", self.vpp is VppLife.NEEDED), ("policy_mode", self.policy_mode is PolicyMode.SPD)):
            if asked and self.engine in (EngineChoice.SOFT, EngineChoice.KERNEL):
                option = f'{name} = "{getattr(self, name)}"'
                raise Refused(f'engine = "{self.engine}" and {option} exclude each other', "leave one of them out")
        return self

    @property
    def starts_vpp(self) -> bool:
        """The daemon starts and stops VPP. An engine of the command line's choice may need none."""
        return self.vpp is VppLife.NEEDED and self.engine in (EngineChoice.AUTO, EngineChoice.VPP)


class ConnectionConfig(_Converted):
    """``[connections.NAME]``, by the name that swanctl.conf gives the connection. ``mode`` goes before the gateway's
    mode and canary share.
    """

    accelerate: bool = True
    mode: Mode | None = None

    @model_validator(mode="after")
    def _not_both(self) -> Self:
        if not self.accelerate and self.mode is not None:
            raise Refused(f'accelerate = false and mode = "{self.mode}" exclude each other', "leave one of them out")
        return self


class Config(_Converted):
    """The whole file. ``firewall`` is None when it defines no zones: then nothing is filtered or translated."""

    gateway: GatewayConfig = GatewayConfig()
    connections: dict[str, ConnectionConfig] = Field(default_factory=dict)
    firewall: InstanceOf[Ruleset] | None = None

    @property
    def choices(self) -> Choices:
        """What the operator decided about who carries which tunnels."""
        items = self.connections.items()
        return Choices(
            kept=frozenset(name for name, connection in items if not connection.accelerate),
            observed=frozenset(name for name, connection in items if connection.mode is Mode.OBSERVE),
            accelerated=frozenset(name for name, connection in items if connection.mode is Mode.ACCELERATE),
            observe=self.gateway.mode is Mode.OBSERVE,
            canary=self.gateway.canary,
        )

    def following(self, file: Config) -> Config:
        """The same with what a reload follows from the file as it is by now: the firewall, if one runs, and what the
        operator decided about tunnels.
        """
        gateway = self.gateway.model_copy(update={"mode": file.gateway.mode, "canary": file.gateway.canary})
        firewall = file.firewall if self.firewall is not None else None
        return self.model_copy(update={"gateway": gateway, "connections": file.connections, "firewall": firewall})
