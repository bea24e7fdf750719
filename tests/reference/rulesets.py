"""Random rulesets: small, valid, and so that most flows get somewhere."""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from random import Random

from ipsec_gw.model.filters import Colour, Filter, FilterAction, FilterTerm, Policer
from ipsec_gw.model.firewall import (
    ANY_SERVICE,
    SELF,
    Action,
    Blocks,
    DestinationNat,
    Nat64,
    Nptv6,
    Policy,
    Pool,
    PoolEngine,
    Ruleset,
    Service,
    Sessions,
    SourceNat,
    StaticNat,
    Timeouts,
    Translation,
    Zone,
)
from ipsec_gw.model.ids import IpNetwork
from ipsec_gw.model.objects import ANY_PORT, PortMatch
from ipsec_gw.model.screens import Screens
from ipsec_gw.model.snapshot import Mode, PolicyDirection, Template, XfrmPolicy
from tests.reference.flows import CODEPOINTS
from tests.reference.network import LINKS
from xdp_steer.screen_layout import Screen

PREFIXES = tuple(
    ip_network(text)
    for text in [
        "10.0.0.0/16",
        "10.0.0.0/24",
        "10.0.0.8/29",
        "10.0.0.10/32",
        "10.0.1.0/24",
        "10.0.1.10/31",
        "10.0.2.0/24",
        "10.0.100.0/24",
        "0.0.0.0/0",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "192.0.2.0/24",
        "10.0.0.1/32",
        "::/0",
        "2001:db8::/32",
        "2001:db8:a::/64",
        "2001:db8:a::a/127",
        "2001:db8:b::/64",
        "2001:db8:c::/64",
        "2001:db8:d::/64",
        "2001:db8:a::a/128",
        "2001:db8:100::/64",
        "2001:db8:a::1/128",
    ]
)
SERVICES = (
    (Service(6),),
    (Service(17),),
    (Service(1), Service(58)),
    (Service(6, (80, 80)), Service(6, (443, 443), timeout=20)),
    (Service(6, (20, 8200)),),
    (Service(6, (0, 65535), (40000, 65535)),),
    (Service(17, (53, 53), timeout=5), Service(6, (53, 53))),
    (Service(17, (50, 60), (1024, 39999)),),
    (Service(1, (0x0800, 0x08FF), timeout=7), Service(58, (0x8000, 0x8000))),
    (Service(47), Service(50)),
    (Service(None, timeout=40),),
    (Service(132),),
)
PORTS = (22, 53, 80, 443, 8080, 500, 4500)
"""Destination ports of flows, most of them named by a service."""
CLIENT_PORTS = (1023, 1024, 5000, 40000, 40001, 40002, 65535)
BLOCKS = (
    Blocks(1, ip_network("10.0.0.8/29")),
    Blocks(2, ip_network("10.0.0.0/24")),
    Blocks(500, ip_network("10.0.0.0/16")),
    Blocks(60000, ip_network("10.0.0.10/31")),
)
"""Of deterministic NAT; not all of the subscribers have room in a pool, and not all that ask are subscribers."""
WINDOW = 60
"""Of screens, in seconds: the real thing's clock should not end it while a sequence runs."""
EXTERNAL4, EXTERNAL6 = ip_network("198.51.100.64/28"), ip_network("2001:db8:d:1::/80")


@dataclass(frozen=True, slots=True)
class Traits:
    """What an interface of a configuration is like beside its zone."""

    redirect: bool
    partial: bool
    address4: bool
    address6: bool


@dataclass(frozen=True, slots=True)
class Configuration:
    """A ruleset, the machine's interfaces that it meets, and IPsec policies. ``vpp``: VPP is there for its pools,
    ``vpp_at_times``: also for those that are VPP's at times, to begin with.
    """

    ruleset: Ruleset
    traits: dict[str, Traits]
    tunnels: tuple[XfrmPolicy, ...] = ()
    vpp: bool = True
    vpp_at_times: bool = False


def configuration(random: Random) -> Configuration:
    """Zones, policies, NAT; every kind of rule comes up, none is always there."""
    zones = _zones(random)
    if random.random() < 0.6:
        zones = (*zones, replace(_zones(random)[0], name="vpn", interfaces=(), tunnels=True))
    names = [zone.name for zone in zones]
    pools = _pools(random)
    ruleset = Ruleset(
        zones=zones,
        policies=tuple(_policy(random, f"p{number}", names) for number in range(random.randrange(9))),
        default=random.choice((*(5 * (Action.PERMIT,)), Action.DENY, Action.REJECT)),
        pools=pools,
        source_nat=tuple(_source_nat(random, f"s{n}", names, pools) for n in range(random.choice((0, 1, 2, 2, 4)))),
        destination_nat=tuple(_destination_nat(random, f"d{n}", names) for n in range(random.choice((0, 1, 2, 3)))),
        static_nat=_static_nat(random, names),
        nptv6=_nptv6(random, names),
        nat64=_nat64(random, names, pools),
        sessions=Sessions(timeouts=Timeouts(*(random.choice((2, 5, 20, 120)) for _ in range(8)))),
        screens=(_screens(random, "all", 1.0), _screens(random, "some", 0.5)),
    )
    ruleset = _with_filters(random, _with_vpp(random, ruleset))
    traits = {
        link.name: Traits(random.random() < 0.85, random.random() < 0.3, random.random() < 0.9, random.random() < 0.9)
        for link in LINKS
    }
    tunnels = _tunnels(random) if random.random() < 0.6 else ()
    return Configuration(ruleset, traits, tunnels, vpp=random.random() < 0.8, vpp_at_times=random.random() < 0.5)


FAR = {
    4: (
        "203.0.113.0/24",
        "203.0.113.8/30",
        "8.8.8.0/24",
        "192.0.2.0/24",
        "10.0.1.0/24",
        "10.0.0.0/24",
        "198.51.100.10/32",
    ),
    6: ("2001:4860::/32", "2001:db8:f3::/64", "2001:db8:b::/64", "2001:db8:b:ffff::/64", "2001:db8:c::a/127"),
}
"""The far side of IPsec policies; some are networks of this machine's interfaces as well."""
NEAR = {
    4: (
        "10.0.0.0/24",
        "10.0.0.8/29",
        "10.0.2.0/24",
        "198.51.100.64/28",
        "198.51.100.100/30",
        "198.51.100.100/32",
        "198.51.100.0/24",
        "10.0.1.1/32",
        "0.0.0.0/0",
    ),
    6: ("2001:db8:a::/64", "2001:db8:c::/64", "2001:db8:d:1::/80", "2001:db8:d::/64", "2001:db8:e0::/48", "::/0"),
}
"""Our side: as hosts are, and as NAT makes them."""
SOME_PORTS = (PortMatch(80, 0xFFFF), PortMatch(40000, 0xFFFE), PortMatch(0x8000, 0x8000), PortMatch(1, 1))


def _tunnels(random: Random) -> tuple[XfrmPolicy, ...]:
    """Policies both ways. Of ICMP none asks for a type: NAT64 makes others of them."""
    made: list[XfrmPolicy] = []
    for reqid in range(1, random.choice((2, 3, 5, 7))):
        family = random.choice((4, 4, 6))
        near, far = (ip_network(random.choice(of[family])) for of in (NEAR, FAR))
        template = Template(near[0], far[0], 0, 50, reqid, Mode.TUNNEL)
        templates = (template,) if random.random() < 0.85 else ()
        upper = random.choice((0, 0, 0, 6, 17))
        ours, theirs = (random.choice((ANY_PORT, ANY_PORT, *SOME_PORTS)) if upper else ANY_PORT for _ in range(2))
        common = (random.choice((100, 100, 200, 300)), random.random() < 0.95, templates, False, upper)
        made.append(XfrmPolicy(PolicyDirection.OUT, near, far, *common, ours, theirs))
        made.append(XfrmPolicy(PolicyDirection.IN, far, near, *common, theirs, ours))
    return tuple(made)


def _zones(random: Random) -> tuple[Zone, ...]:
    names = [f"z{number}" for number in range(random.randint(2, 4))]
    homes: dict[str, list[str]] = {name: [] for name in names}
    for link in LINKS:
        if random.random() < (0.95 if link.forwarding else 0.4):
            homes[random.choice(names)].append(link.name)
    return tuple(
        Zone(
            name,
            tuple(homes[name]),
            host_inbound=random.choice(((), *SERVICES)),
            syn_check=random.random() < 0.7,
            tcp_reset=random.random() < 0.4,
            tcp_mss=random.choice((None, None, 1200, 1361)),
            screen=random.choice((None, None, "all", "some")),
        )
        for name in names
    )


def _screens(random: Random, name: str, chance: float) -> Screens:
    """Each switch is on by that chance, and a few thresholds: with all of them the first would hide the others."""
    switches = {screen.name.lower(): random.random() < chance for screen in Screen if screen <= Screen.PING_OF_DEATH}
    counting = [screen for screen in Screen if Screen.PING_OF_DEATH < screen < Screen.SYN_COOKIE]
    thresholds = {screen.name.lower(): random.choice((1, 1, 2, 4)) for screen in random.sample(counting, 4)}
    return Screens(name, **switches, **thresholds, window=WINDOW, alarm_only=random.random() < 0.3)


def _some(random: Random, chance: float = 0.5) -> tuple[IpNetwork, ...]:
    """Networks of a rule, none for any."""
    return tuple(random.sample(PREFIXES, random.randint(1, 3))) if random.random() < chance else ()


def _services(random: Random) -> tuple[Service, ...]:
    return ANY_SERVICE if random.random() < 0.5 else sum(random.sample(SERVICES, random.randint(1, 2)), ())


def _policy(random: Random, name: str, zones: list[str]) -> Policy:
    pairs = (
        (None, None),
        (random.choice(zones), random.choice(zones)),
        (random.choice(zones), random.choice(zones)),
        (random.choice(zones), SELF),
        (SELF, random.choice(zones)),
    )
    from_zone, to_zone = random.choice(pairs)
    action = random.choice((*(4 * (Action.PERMIT,)), Action.DENY, Action.REJECT))
    return Policy(
        name,
        action,
        from_zone,
        to_zone,
        _some(random),
        _some(random),
        _services(random),
        log_open=random.random() < 0.2,
        log_close=random.random() < 0.2,
    )


def _pools(random: Random) -> tuple[Pool, ...]:
    made = []
    for number in range(random.choice((1, 2, 3, 4))):
        first = ip_address("198.51.100.100") if random.random() < 0.6 else ip_address("2001:db8:d::100")
        first += 16 * number
        low = random.choice((1024, 40000, 50000))
        high = random.choice((low, low + 1, low + 3, 65535))
        others = [pool.name for pool in made if pool.first.version == first.version and pool.blocks is None]
        pool = Pool(
            f"pool{number}",
            first,
            first + random.choice((0, 0, 1, 3)),
            (low, high),
            random.random() < 0.3,
            random.choice(others) if others and random.random() < 0.6 else None,
        )
        if first.version == 4 and random.random() < 0.3:
            pool = replace(pool, persistent=False, overflow=None, blocks=random.choice(BLOCKS))
        made.append(pool)
    return tuple(made)


def _source_nat(random: Random, name: str, zones: list[str], pools: tuple[Pool, ...]) -> SourceNat:
    kind = random.choice((Translation.OFF, Translation.INTERFACE, Translation.POOL, Translation.POOL, Translation.POOL))
    return SourceNat(
        name,
        kind,
        random.choice((None, *zones)),
        random.choice((None, *zones)),
        _some(random, 0.3),
        _some(random, 0.3),
        _services(random) if random.random() < 0.3 else ANY_SERVICE,
        random.choice(pools).name if kind is Translation.POOL else None,
    )


def _destination_nat(random: Random, name: str, zones: list[str]) -> DestinationNat:
    networks = random.choice(
        (
            ("198.51.100.50/32", "10.0.1.10/32"),
            ("198.51.100.48/30", "10.0.0.8/30"),
            ("198.51.100.51/32", "10.0.2.1/32"),
            ("198.51.100.1/32", "10.0.0.10/32"),
            ("10.0.0.0/24", "10.0.1.0/24"),
            ("2001:db8:d::50/128", "2001:db8:a::a/128"),
            ("2001:db8:d:50::/64", "2001:db8:b::/64"),
            ("2001:db8:d::51/128", "2001:db8:c::1/128"),
        )
    )
    services, to_port = random.choice(
        (
            (ANY_SERVICE, None),
            (ANY_SERVICE, None),
            ((Service(6, (80, 80)),), 8080),
            ((Service(6, (20, 100)), Service(17, (50, 60))), 7000),
            ((Service(1), Service(58), Service(17)), None),
        )
    )
    return DestinationNat(
        name,
        ip_network(networks[0]),
        ip_network(networks[1]),
        random.choice((None, None, *zones)),
        _some(random, 0.2),
        services,
        to_port,
    )


def _static_nat(random: Random, zones: list[str]) -> tuple[StaticNat, ...]:
    every = (
        StaticNat("n4", random.choice(zones), EXTERNAL4, ip_network("10.0.2.0/28")),
        StaticNat("n6", random.choice(zones), EXTERNAL6, ip_network("2001:db8:c::/80")),
    )
    return tuple(static for static in every if random.random() < 0.35)


def _nptv6(random: Random, zones: list[str]) -> tuple[Nptv6, ...]:
    """Prefixes of all sorts of lengths, about the hosts of two links."""
    pairs = random.choice(
        (
            ("2001:db8:e0::/48", "2001:db8:b::/48"),
            ("2001:db8:e0::/64", "2001:db8:b::/64"),
            ("2001:dba::/31", "2001:db8::/31"),
            ("2001:db8:e0:40::/58", "2001:db8:b::/58"),
        )
    )
    made = Nptv6("np", random.choice(zones), *map(ip_network, pairs))
    other = Nptv6("nq", random.choice(zones), ip_network("2001:db8:e1::/56"), ip_network("2001:db8:a::/56"))
    return tuple(rule for rule in (made, other) if random.random() < 0.3)


NAT64_PREFIXES = tuple(
    ip_network(text)
    for text in (
        "64:ff9b::/96",
        "2001:db8:64::/96",
        "2001:db8:65::/64",
        "2001:db8:66::/56",
        "2001:db8:67::/48",
        "2001:db8:6800::/40",
        "2001:db9::/32",
    )
)


def _nat64(random: Random, zones: list[str], pools: tuple[Pool, ...]) -> tuple[Nat64, ...]:
    fours = [pool.name for pool in pools if pool.first.version == 4]
    chosen = random.sample(NAT64_PREFIXES, random.choice((0, 1, 2)))
    made = [
        Nat64(f"f{number}", prefix, random.choice((None, None, *zones)), random.choice((None, *fours, *fours)))
        for number, prefix in enumerate(chosen)
    ]
    if random.random() < 0.6:
        made.append(Nat64("everybody", ip_network("2001:db8:6f::/96"), None, random.choice((None, *fours))))
    return tuple(made)


VPPS = Pool("vpp", ip_address("198.51.100.200"), ip_address("198.51.100.207"), engine=PoolEngine.VPP)


def _with_vpp(random: Random, ruleset: Ruleset) -> Ruleset:
    """A pool of VPP, at times, for flows into one zone; before the other rules or after them."""
    if random.random() < 0.4:
        return ruleset
    zones = [zone.name for zone in ruleset.zones if not zone.tunnels]
    outer = [zone.name for zone in ruleset.zones if "fwd" in zone.interfaces]  # where most routes lead
    to_zone = random.choice(outer if outer and random.random() < 0.8 else zones)
    rules = tuple(
        SourceNat(
            f"v{number}",
            Translation.POOL,
            random.choice((None, None, None, *zones)),
            to_zone,
            _some(random, 0.2),
            _some(random, 0.2),
            _services(random) if random.random() < 0.2 else ANY_SERVICE,
            VPPS.name,
        )
        for number in range(random.choice((1, 1, 2)))
    )
    others = ruleset.source_nat
    placed = (*rules, *others) if random.random() < 0.7 else (*others, *rules)
    kind = int(random.random() * 8)
    ports = (2000, 2001) if kind & 1 else VPPS.ports  # of XDP's part, which may have none left
    engine = PoolEngine.AUTO if kind & 2 else PoolEngine.VPP
    pool = replace(VPPS, ports=ports, persistent=kind < 4, engine=engine)
    return replace(ruleset, pools=(*ruleset.pools, pool), source_nat=placed)


POLICERS = (
    Policer("two", 16, 300, red=Colour.DISCARD),
    Policer("marks", 16, 200, red=12),
    Policer("one-rate", 16, 150, excess_burst=250, yellow=14, red=Colour.DISCARD),
    Policer("two-rates", 16, 200, peak_rate=32, peak_burst=400, yellow=Colour.ACCEPT, red=46, aware=True),
)
"""So slow that the time that a sequence takes means nothing to them."""


def _with_filters(random: Random, ruleset: Ruleset) -> Ruleset:
    """A filter for what comes in, one for what goes out and one for this machine, each of them now and then."""
    zoned = [name for zone in ruleset.zones for name in zone.interfaces]
    filters = []
    if zoned and random.random() < 0.4:
        filters.append(Filter("in", input=tuple(random.sample(zoned, random.randint(1, len(zoned))))))
    if zoned and random.random() < 0.4:
        filters.append(Filter("out", output=tuple(random.sample(zoned, random.randint(1, min(2, len(zoned)))))))
    if random.random() < 0.3:
        filters.append(Filter("host", host=True))
    terms = tuple(
        _filter_term(random, one.name, number) for one in filters for number in range(random.choice((1, 2, 3, 5)))
    )
    return replace(ruleset, filters=tuple(filters), filter_terms=terms, policers=POLICERS if filters else ())


def _filter_term(random: Random, name: str, number: int) -> FilterTerm:
    """Most of them let pass what they match."""
    action = random.choice((*(5 * (FilterAction.ACCEPT,)), FilterAction.DISCARD, FilterAction.REJECT))
    accepts = action is FilterAction.ACCEPT
    return FilterTerm(
        f"{name}/t{number}",
        name,
        action,
        _some(random, 0.2),
        _some(random, 0.2),
        _services(random),
        dscp=frozenset(random.sample((0, *CODEPOINTS), 3)) if random.random() < 0.15 else frozenset(),
        flags_set=random.choice((0, 0, 0, 0, 2, 16)),
        flags_clear=random.choice((0, 0, 0, 0, 1, 4)),
        fragment=random.choice((None, None, None, None, True, False)),
        policer=random.choice(POLICERS).name if accepts and random.random() < 0.6 else None,
        mark=random.choice(CODEPOINTS) if accepts and random.random() < 0.5 else None,
    )
