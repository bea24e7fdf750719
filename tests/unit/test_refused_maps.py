"""Whatever the kernel refuses of the steering's maps is an error with the object's name, that a pass survives."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from ipsec_gw.errors import EnvironmentMissing, SteeringError
from ipsec_gw.ike.observer import Observer
from ipsec_gw.ike.xfrm import XfrmMonitor, XfrmSocket
from ipsec_gw.mirror.kernel import KernelView
from ipsec_gw.model.ids import SaKey
from tests.support.world import REMOTE
from xdp_steer import tables
from xdp_steer.layout import AddressLeaf, Owner, SaKeyLeaf
from xdp_steer.tables import AddressTable, GuardTable, SteerTable

KEY = SaKey(REMOTE, 0x22)
CALLS: dict[str, Callable[[SteerTable, GuardTable, AddressTable], object]] = {
    f"steering of {KEY}": lambda steer, _guard, _addresses: steer.add(KEY),
    f"end of the steering of {KEY}": lambda steer, _guard, _addresses: steer.remove(KEY),
    "reading of the steered SAs": lambda steer, _guard, _addresses: steer.keys(),
    f"guard of {KEY}": lambda _steer, guard, _addresses: guard.set_owner(KEY, Owner.ENGINE),
    f"end of the guard of {KEY}": lambda _steer, guard, _addresses: guard.forget(KEY),
    "reading of the guarded SAs": lambda _steer, guard, _addresses: (guard.known(), guard.owned_by(Owner.ENGINE)),
    "reading of the guard's counters": lambda _steer, guard, _addresses: guard.counters(),
    "reading of the local addresses": lambda _steer, _guard, addresses: addresses.replace(frozenset()),
}


def refuse(*_args: Any, **_kwargs: Any) -> Any:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


@pytest.mark.parametrize("what", CALLS)
def test_a_refused_call_names_what_it_was_for(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.libbpf, "map_keys", lambda *_: iter(()))
    parts = SteerTable(1, 2), GuardTable(3, 4), AddressTable(5)
    for name in ("map_keys", "map_lookup", "map_update", "map_delete"):
        monkeypatch.setattr(tables.libbpf, name, refuse)
    with pytest.raises(SteeringError, match=f"^{what} refused by the kernel"):
        CALLS[what](*parts)


@pytest.mark.parametrize("call", [lambda guard: guard.owned_by(Owner.ENGINE), lambda guard: guard.counters()])
def test_an_entry_that_cannot_be_read_is_refused(
    call: Callable[[GuardTable], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables.libbpf, "map_keys", lambda *_: iter((SaKeyLeaf.of(KEY),)))
    monkeypatch.setattr(tables.libbpf, "map_lookup", refuse)
    with pytest.raises(SteeringError, match=r"^reading of the guard"):
        call(GuardTable(1, 2))


def test_an_address_that_cannot_be_removed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.libbpf, "map_keys", lambda *_: iter((AddressLeaf.of(REMOTE),)))
    monkeypatch.setattr(tables.libbpf, "map_delete", refuse)
    with pytest.raises(SteeringError, match=f"^end of local address {REMOTE}"):
        AddressTable(1).replace(frozenset())


@pytest.mark.parametrize("error", [NetlinkError(105), OSError(errno.ENOBUFS, "No buffer space available")])
async def test_a_snapshot_without_the_network_around_it_is_an_error(error: Exception) -> None:
    async def fail() -> Any:
        raise error

    observer = Observer(
        cast(XfrmSocket, SimpleNamespace(sas=list, policies=list)),
        cast(XfrmMonitor, SimpleNamespace(changes=0, drain=lambda: None)),
        cast(KernelView, SimpleNamespace(addresses=fail)),
        cast(Any, None),
        names_decide=False,
        named=lambda: None,
    )
    with pytest.raises(EnvironmentMissing, match="No buffer space"):
        await observer.snapshot()


async def test_a_neighbour_that_cannot_be_asked_for_is_left_out() -> None:
    """The interface went down between two answers."""
    asked: list[object] = []

    async def each(rows: list[dict[str, Any]]) -> Any:
        for row in rows:
            yield row

    class Route:
        async def get_links(self) -> Any:
            return each([{"ifname": "wan0", "address": "02::", "mtu": 1500, "index": 7, "ifi_type": 1}])

        async def get_neighbours(self) -> Any:
            return each([])

        async def route(self, *_args: Any, **_kwargs: Any) -> Any:
            return [{"oif": 7}]

        async def neigh(self, *args: Any, **kwargs: Any) -> None:
            asked.append(kwargs["dst"])
            raise NetlinkError(100)

    view = KernelView(cast(Any, Route()))
    assert await view.next_hops({ip_address("10.0.0.9"): None}, await view.links()) == {}
    assert asked == ["10.0.0.9"]
