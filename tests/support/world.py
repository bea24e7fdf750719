"""A small made-up world for tests of the core: two sites, SAs and policies as strongSwan installs them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

from ipsec_gw.desired import EngineOffer, Settings
from ipsec_gw.model.algorithms import ALGORITHMS
from ipsec_gw.model.ids import EngineName, SaKey
from ipsec_gw.model.secret import Secret
from ipsec_gw.model.snapshot import (
    AeadKey,
    ChildName,
    Lifetime,
    Mode,
    PolicyDirection,
    Replay,
    ResolvedHop,
    Snapshot,
    Template,
    XfrmPolicy,
    XfrmSa,
)

LOCAL, REMOTE = ip_address("10.0.0.1"), ip_address("10.0.0.2")
HERE, THERE = ip_network("192.168.1.0/24"), ip_network("192.168.2.0/24")
CANARY = bytes.fromhex("c0ffee0ddeadbeef5ca1ab1eca5cade5") + b"salt"

OFFER = EngineOffer(
    name=EngineName.VPP, algorithms=frozenset(ALGORITHMS), esn=True, udp_encap=True, max_replay_window=4096, gre=True
)
SETTINGS = Settings(wan=frozenset({"wan0"}))


def sa(spi: int, *, inbound: bool = False, age: int = 0, **changes: object) -> XfrmSa:
    """An AES-GCM-128 SA of reqid 1 between the two sites."""
    source, destination = (REMOTE, LOCAL) if inbound else (LOCAL, REMOTE)
    base = XfrmSa(
        key=SaKey(destination, spi),
        source=source,
        protocol=50,
        mode=Mode.TUNNEL,
        reqid=1,
        aead=AeadKey("rfc4106(gcm(aes))", Secret(CANARY), 128),
        algorithm="rfc4106(gcm(aes)) icv 128",
        replay=Replay(oseq=0, seq=0, window=32, esn=False, extended=False),
        lifetime=Lifetime(0, 0, 1000 + age, 0),
    )
    return replace(base, **changes)


def policy(spi: int, **changes: object) -> XfrmPolicy:
    """The outbound policy of that tunnel, bound to an SPI."""
    base = XfrmPolicy(
        direction=PolicyDirection.OUT,
        source=HERE,
        destination=THERE,
        priority=375423,
        allow=True,
        templates=(Template(LOCAL, REMOTE, spi, 50, 1, Mode.TUNNEL),),
    )
    return replace(base, **changes)


def snapshot(*sas: XfrmSa, policies: tuple[XfrmPolicy, ...] = (), **changes: object) -> Snapshot:
    """A snapshot in which the peer is reachable by wan0."""
    base = Snapshot(
        sas=sas,
        policies=policies,
        names={s.key.spi: ChildName("site", "net", 1, 1, "INSTALLED") for s in sas},
        local_addresses=frozenset({LOCAL, ip_address("192.168.1.1")}),
        next_hops={REMOTE: ResolvedHop("wan0", REMOTE, "02:00:00:00:00:02", 1500)},
        sources={THERE: ip_address("192.168.1.1")},
    )
    return replace(base, **changes)


def established(**changes: object) -> Snapshot:
    """A CHILD_SA that is up: inbound 0x11, outbound 0x22."""
    return snapshot(sa(0x11, inbound=True), sa(0x22), **{"policies": (policy(0x22),), **changes})
