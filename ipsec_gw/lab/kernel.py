"""What this kernel can do: is there ESP, or does the lab need its virtual machine?"""

from __future__ import annotations

import os
import platform
from enum import StrEnum

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.lab.process import need_tools, run


class Environment(StrEnum):
    """Where a scenario runs."""

    NATIVE = "native"
    VM = "vm"


TOOLS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "swanctl": "strongswan-swanctl",
    "charon-systemd": "charon-systemd",
}
"""Programs that every scenario needs, and their Debian packages."""

PROBE = (
    "xfrm state add src 192.0.2.1 dst 192.0.2.2 proto esp spi 0x1000 mode tunnel "
    "aead rfc4106(gcm(aes)) 0x000102030405060708090a0b0c0d0e0f10111213 128"
)


def need_root() -> None:
    """Raise EnvironmentMissing unless we are root."""
    if os.geteuid() != 0:
        raise EnvironmentMissing("the lab makes network namespaces - run it as root")


async def has_esp() -> bool:
    """Try to add an ESP state in a scratch namespace, which goes away with the trial."""
    trial = await run(["unshare", "--net", "ip", *PROBE.split()], check=False)
    return trial.code == 0


async def choose_environment() -> Environment:
    """Native if the kernel has ESP, else the virtual machine. Raises EnvironmentMissing for absent programs."""
    need_root()
    need_tools(TOOLS)
    return Environment.NATIVE if await has_esp() else Environment.VM


def release() -> str:
    """The running kernel's release."""
    return platform.release()
