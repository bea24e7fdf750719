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
    connection.
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
        (self.directory / "strongswan.conf").write_text(STRONGSWAN_CONF.format(log=self.log, vici=self.vici))
        (self.directory / "swanctl.conf").write_text(site.conf())


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


def parse_virtual_address(text: str) -> IPv4Address | None:
    """Our own virtual address in `swanctl --list-sas`, or None: it stands behind address and port of our end."""
    found = re.search(r"^\s+local\s+\S+ @ \S+\[\d+\] \[([\d.]+)\]$", text, re.MULTILINE)
    return IPv4Address(found.group(1)) if found else None


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
        daemon = await Daemon.start(
            f"charon of {site.identity}",
            ["charon-systemd"],
            directory / "stderr.log",
            namespace=site.namespace,
            env={"STRONGSWAN_CONF": str(directory / "strongswan.conf")},
            outlive=outlive,
        )
        return cls(site, files, daemon)

    async def load(self) -> None:
        """Wait for the vici socket and load the configuration. Raises CommandFailed or TrafficError."""

        def ready() -> bool:
            self.daemon.ensure_running()
            return (self.files.directory / "vici").exists()

        await until(ready, START_SECONDS, f"vici socket of {self.site.identity}")
        await self.swanctl("--load-all", "--file", str(self.files.directory / "swanctl.conf"))

    async def reconfigure(self, site: Site) -> None:
        """Take another configuration, with no tunnel up."""
        self.site = site
        (self.files.directory / "swanctl.conf").write_text(swanctl_conf(site))
        await self.load()

    async def swanctl(self, *arguments: str, timeout: float = 60.0) -> str:
        """Run swanctl against this charon. Raises CommandFailed."""
        env = {"STRONGSWAN_CONF": str(self.files.directory / "strongswan.conf")}
        done = await run(["swanctl", *arguments, "--uri", self.files.vici], env=env, timeout=timeout)
        return done.stdout

    async def initiate(self) -> None:
        """Bring the tunnel up."""
        await self.swanctl("--initiate", "--child", CHILD, "--timeout", "45")

    async def rekey(self) -> None:
        """Ask for a new CHILD_SA; returns when charon has accepted the wish."""
        await self.swanctl("--rekey", "--child", CHILD)

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
