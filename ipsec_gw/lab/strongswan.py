"""Two unmodified strongSwan daemons, each with its own configuration and vici socket."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Protocol

from ipsec_gw.errors import IpsecGwError
from ipsec_gw.lab.process import Daemon, run
from ipsec_gw.lab.traffic import until
from ipsec_gw.model.ids import IpAddress, IpNetwork

PROPOSALS = ("aes128gcm16", "aes192gcm16", "aes256gcm16", "chacha20poly1305")
"""ESP ciphers that a scenario can ask for, as swanctl names them."""

CONNECTION, CHILD = "site", "net"

START_SECONDS = 60.0
"""Under emulation charon takes seconds to load its crypto libraries."""

STRONGSWAN_CONF = """\
charon-systemd {{
  load = random nonce openssl hmac kdf gcm pem pkcs1 x509 pubkey curve25519 kernel-netlink socket-default vici updown
  i_dont_care_about_security_and_use_aggressive_mode_psk = yes
  send_vendor_id = yes
  filelog {{
    log {{
      path = {log}
      default = 1
      flush_line = yes
    }}
  }}
  plugins {{
    vici {{
      socket = {vici}
    }}
  }}
}}
swanctl {{
  load = openssl pem pkcs1 x509 pubkey
}}
"""

MAKE_BEFORE_BREAK = "charon-systemd {\n  make_before_break = yes\n}\n"
"""A setting for reauthentication (with IKEv2)."""

SWANCTL_CONF = """\
connections {{
  {connection} {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    proposals = aes128gcm16-prfsha256-x25519
    {options}
    local {{
      auth = psk
      id = {identity}
    }}
    remote {{
      auth = psk
      id = {peer}
    }}
    children {{
      {child} {{
        local_ts = {local_network}
        remote_ts = {remote_network}
        esp_proposals = {proposal}-x25519
        inactivity = {inactivity}s
        {child_options}
      }}
    }}
  }}
}}
secrets {{
  ike-1 {{
    secret = "lab only"
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Site:
    """One side of the tunnel, as its swanctl.conf says it; ``more`` are further networks, local and remote. After
    ``inactivity`` seconds without traffic it closes the tunnel, 0: never. ``options`` are further lines of the
    connection, ``child_options`` of its child.
    """

    identity: str
    peer: str
    namespace: str
    local: IpAddress
    remote: IpAddress
    local_network: IpNetwork
    remote_network: IpNetwork
    proposal: str
    more: tuple[tuple[IpNetwork, IpNetwork], ...] = ()
    inactivity: int = 0
    options: tuple[str, ...] = ()
    child_options: tuple[str, ...] = ()

    def conf(self) -> str:
        """Its swanctl.conf."""
        return swanctl_conf(self)


ROADWARRIOR_CONF = """\
connections {{
  {connection} {{
    version = 2
    local_addrs = {local}
    remote_addrs = {remote}
    vips = 0.0.0.0
    proposals = aes128gcm16-prfsha256-x25519
    local {{
      auth = psk
      id = {identity}
    }}
    remote {{
      auth = psk
      id = {peer}
    }}
    children {{
      {child} {{
        remote_ts = {remote_network}
        esp_proposals = {proposal}-x25519
      }}
    }}
  }}
}}
secrets {{
  ike-1 {{
    secret = "lab only"
  }}
}}
"""

CONCENTRATOR_CONF = """\
connections {{
  {connection} {{
    version = 2
    local_addrs = {local}
    proposals = aes128gcm16-prfsha256-x25519
    pools = virtual
    unique = replace
    local {{
      auth = psk
      id = {identity}
    }}
    remote {{
      auth = psk
    }}
    children {{
      {child} {{
        local_ts = {local_network}
        esp_proposals = {proposal}-x25519
      }}
    }}
  }}
}}
pools {{
  virtual {{
    addrs = {pool}
  }}
}}
secrets {{
  ike-1 {{
    secret = "lab only"
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Roadwarrior:
    """A host that asks for a virtual address."""

    identity: str
    peer: str
    namespace: str
    local: IPv4Address
    remote: IPv4Address
    remote_network: IPv4Network
    proposal: str

    def conf(self) -> str:
        """Its swanctl.conf."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "namespace"}
        return ROADWARRIOR_CONF.format(connection=CONNECTION, child=CHILD, **values)


@dataclass(frozen=True, slots=True)
class Concentrator:
    """A gateway that gives roadwarriors virtual addresses out of ``pool``."""

    identity: str
    namespace: str
    local: IPv4Address
    local_network: IPv4Network
    pool: IPv4Network
    proposal: str

    def conf(self) -> str:
        """Its swanctl.conf."""
        values = {name: getattr(self, name) for name in self.__slots__ if name != "namespace"}
        return CONCENTRATOR_CONF.format(connection=CONNECTION, child=CHILD, **values)


class Party(Protocol):
    """Whoever runs a charon."""

    @property
    def identity(self) -> str:
        """By which IKE knows it, and its directory."""

    @property
    def namespace(self) -> str:
        """Where it runs."""

    def conf(self) -> str:
        """Its swanctl.conf."""


@dataclass(frozen=True, slots=True)
class Files:
    """Where a site keeps its things."""

    directory: Path

    @property
    def vici(self) -> str:
        """The vici socket as swanctl wants it."""
        return f"unix://{self.directory / 'vici'}"

    @property
    def log(self) -> Path:
        """Charon's own log."""
        return self.directory / "charon.log"

    def write(self, site: Party) -> None:
        """Make the directory and both configuration files, readable by us alone."""
        self.directory.mkdir(mode=0o700)
        self.write_settings()
        (self.directory / "swanctl.conf").write_text(site.conf())

    def write_settings(self, more: str = "") -> None:
        """Charon's own settings: the usual ones, and these."""
        usual = STRONGSWAN_CONF.format(log=self.log, vici=self.vici)
        (self.directory / "strongswan.conf").write_text(usual + more)


def swanctl_conf(site: Site) -> str:
    """The site's swanctl.conf."""
    return SWANCTL_CONF.format(
        connection=CONNECTION,
        child=CHILD,
        local=site.local,
        remote=site.remote,
        identity=site.identity,
        inactivity=site.inactivity,
        peer=site.peer,
        local_network=_listed(site.local_network, *(local for local, _ in site.more)),
        remote_network=_listed(site.remote_network, *(remote for _, remote in site.more)),
        proposal=site.proposal,
        options="\n    ".join(site.options),
        child_options="\n        ".join(site.child_options),
    )


def _listed(*networks: IpNetwork) -> str:
    return ",".join(map(str, networks))


@dataclass(frozen=True, slots=True)
class Established:
    """What `swanctl --list-sas` says of the tunnel: states, cipher and the child's traffic counters."""

    ike: bool
    child: bool
    cipher: str

    def __str__(self) -> str:
        ike = "IKE_SA established" if self.ike else "no IKE_SA"
        return f"{ike}, {f'CHILD_SA installed with {self.cipher}' if self.child else 'no CHILD_SA'}"


def parse_list_sas(text: str) -> Established:
    """Read `swanctl --list-sas` (swanctl's ``list_sas.c`` writes it)."""
    child = re.search(rf"^\s+{CHILD}: #\d+, .*\bINSTALLED\b.*\bESP:(\S+)$", text, re.MULTILINE)
    ike = re.search(rf"^{CONNECTION}: #\d+, ESTABLISHED, IKEv2", text, re.MULTILINE)
    return Established(ike is not None, child is not None, child.group(1) if child else "")


def parse_children(text: str, child: str) -> list[int]:
    """The numbers of the installed CHILD_SAs of a name in `swanctl --list-sas`, in ascending order."""
    return sorted(map(int, re.findall(rf"^\s+{child}: #(\d+), .*\bINSTALLED\b", text, re.MULTILINE)))


def parse_inbound(text: str, child: str) -> int | None:
    """The inbound SPI of the first CHILD_SA of a name in `swanctl --list-sas`, or None."""
    found = re.search(rf"^\s+{child}: #\d+, .*?^\s+in\s+([0-9a-f]{{8}})\b", text, re.MULTILINE | re.DOTALL)
    return int(found.group(1), 16) if found else None


def parse_virtual_address(text: str) -> IPv4Address | None:
    """Our own virtual address in `swanctl --list-sas`, or None: it stands behind address and port of our end."""
    found = re.search(r"^\s+local\s+\S+ @ \S+\[\d+\] \[([\d.]+)\]$", text, re.MULTILINE)
    return IPv4Address(found.group(1)) if found else None


async def _run_charon(site: Party, directory: Path, *, outlive: bool = False) -> Daemon:
    return await Daemon.start(
        f"charon of {site.identity}",
        ["charon-systemd"],
        directory / "stderr.log",
        namespace=site.namespace,
        env={"STRONGSWAN_CONF": str(directory / "strongswan.conf")},
        outlive=outlive,
    )


class Swan:
    """A running charon-systemd of one site, driven by swanctl as an operator would."""

    def __init__(self, site: Party, files: Files, daemon: Daemon) -> None:
        self.site = site
        self.files = files
        self.daemon = daemon

    @classmethod
    async def start(cls, site: Party, directory: Path, *, outlive: bool = False) -> Swan:
        """Write the configuration and start charon; it answers once :meth:`load` returned."""
        files = Files(directory)
        files.write(site)
        return cls(site, files, await _run_charon(site, directory, outlive=outlive))

    async def run_again(self) -> None:
        """Start charon after it was stopped or killed; it answers once :meth:`load` returned."""
        (self.files.directory / "vici").unlink(missing_ok=True)  # one that was killed leaves its socket
        self.daemon = await _run_charon(self.site, self.files.directory)

    async def load(self, command: str = "--load-all") -> None:
        """Wait for the vici socket and load the configuration. Raises CommandFailed or TrafficError."""

        def ready() -> bool:
            self.daemon.ensure_running()
            return (self.files.directory / "vici").exists()

        await until(ready, START_SECONDS, f"vici socket of {self.site.identity}")
        await self.swanctl(command, "--file", str(self.files.directory / "swanctl.conf"))

    async def reconfigure(self, site: Party, load: str = "--load-all") -> None:
        """Take another configuration, by swanctl's command ``load``. Raises CommandFailed or TrafficError."""
        self.site = site
        (self.files.directory / "swanctl.conf").write_text(site.conf())
        await self.load(load)

    async def settle(self, more: str = "") -> None:
        """Charon takes these settings besides the usual ones, and those before them no more. Raises CommandFailed."""
        self.files.write_settings(more)
        await self.swanctl("--reload-settings")

    async def swanctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run swanctl against this charon. Raises CommandFailed."""
        env = {"STRONGSWAN_CONF": str(self.files.directory / "strongswan.conf")}
        done = await run(["swanctl", *arguments, "--uri", self.files.vici], env=env, timeout=timeout)
        return done.stdout

    async def initiate(self, child: str = CHILD) -> None:
        """Bring the tunnel up."""
        await self.swanctl("--initiate", "--child", child, "--timeout", "45")

    async def rekey(self, child: str = CHILD) -> None:
        """Ask for a new CHILD_SA; returns when charon has accepted the wish."""
        await self.swanctl("--rekey", "--child", child)

    async def children(self, child: str = CHILD) -> list[int]:
        """The numbers that charon gives the installed CHILD_SAs of this name, the oldest first."""
        return parse_children(await self.swanctl("--list-sas"), child)

    async def inbound(self, child: str = CHILD) -> int:
        """The SPI that the CHILD_SA of this name is received with. Raises IpsecGwError without one."""
        found = parse_inbound(await self.swanctl("--list-sas"), child)
        if found is None:
            raise IpsecGwError(f"{self.site.identity} has no CHILD_SA {child} - see charon.log")
        return found

    async def terminate_child(self, number: int) -> None:
        """Take one CHILD_SA down, the tunnel's others stay."""
        await self.swanctl("--terminate", "--child-id", str(number), "--timeout", "30")

    async def terminate(self) -> None:
        """Take the tunnel down."""
        await self.swanctl("--terminate", "--ike", CONNECTION, "--timeout", "30")

    async def list_sas(self) -> Established:
        """What it holds now."""
        return parse_list_sas(await self.swanctl("--list-sas"))

    async def virtual_address(self) -> IPv4Address:
        """The one that a roadwarrior was given. Raises IpsecGwError without one."""
        found = parse_virtual_address(await self.swanctl("--list-sas"))
        if found is None:
            raise IpsecGwError(f"{self.site.identity} has no virtual address - see charon.log")
        return found

    async def version(self) -> str:
        """Charon's version, asked of the daemon."""
        found = re.search(r"strongSwan \S*?(\d+\.\d+\.\d+\S*)", await self.swanctl("--version", "--daemon"))
        return found.group(1) if found else "unknown"

    async def stop(self) -> None:
        """End charon; it removes its SAs and policies."""
        await self.daemon.stop()
