"""Who talks most: sessions, packets and octets of every client address, both directions together."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum, unique
from ipaddress import IPv6Address

import numpy as np
from numpy.typing import NDArray

from ipsec_gw.model.ids import IpAddress
from xdp_steer.sessions import Batch, Predicate, SessionTable

_HOST = np.dtype("V16")


@unique
class TalkersBy(StrEnum):
    """What talkers are put in order by, the most first."""

    BYTES = "bytes"
    PACKETS = "packets"
    SESSIONS = "sessions"


@dataclass(frozen=True, slots=True)
class Talker:
    """An address that began sessions, with what these carried both ways: packets, and their IP lengths summed up."""

    address: IpAddress
    sessions: int
    packets: int
    octets: int


def top_talkers(table: SessionTable, chosen: Predicate, by: TalkersBy, limit: int) -> tuple[Talker, ...]:
    """The ``limit`` addresses with the most in the sessions whose entries ``chosen`` chooses, by address where equal.

    ``chosen`` must choose both entries of a session or none. Raises OSError from the kernel.
    """
    hosts, sums = np.empty(0, _HOST), np.empty((0, 3), np.uint64)
    for batch in table.batches():
        wanted = np.flatnonzero(chosen(batch))
        found, added = _summed(_clients(batch)[wanted], _columns(batch)[wanted])
        hosts, sums = _summed(np.concatenate([hosts, found]), np.concatenate([sums, added]))
    column = {TalkersBy.SESSIONS: 0, TalkersBy.PACKETS: 1, TalkersBy.BYTES: 2}[by]
    order = np.argsort(-sums[:, column].astype(np.int64), kind="stable")[:limit]
    return tuple(_talker(hosts[index].tobytes(), sums[index]) for index in order.tolist())


def _clients(batch: Batch) -> NDArray[np.void]:
    """The address that a session came from: the source of its first packet, and what answers become."""
    forward, reverse = batch.keys["saddr"]["addr"], batch.rows["daddr"]["addr"]
    chosen = np.where(batch.is_reverse[:, None], reverse, forward)
    return np.ascontiguousarray(chosen).view(_HOST).reshape(-1)


def _columns(batch: Batch) -> NDArray[np.uint64]:
    """Sessions (the forward entry counts), packets, octets."""
    rows = batch.rows
    packets = rows["own_packets"] + rows["far_packets"]
    octets = rows["own_octets"] + rows["far_octets"]
    return np.stack([(~batch.is_reverse).astype(np.uint64), packets, octets], axis=1)


def _summed(hosts: NDArray[np.void], columns: NDArray[np.uint64]) -> tuple[NDArray[np.void], NDArray[np.uint64]]:
    """One row for each host."""
    if not len(hosts):
        return hosts, columns
    text = hosts.view("S16")  # numpy puts no order on void; trailing zeros are all that is lost, and they are equal
    _, first, place = np.unique(text, return_index=True, return_inverse=True)
    sums = np.zeros((len(first), columns.shape[1]), np.uint64)
    np.add.at(sums, place, columns)
    return hosts[first], sums


def _talker(packed: bytes, sums: NDArray[np.uint64]) -> Talker:
    address = IPv6Address(packed)
    sessions, packets, octets = (int(number) for number in sums)
    return Talker(address.ipv4_mapped or address, sessions, packets, octets)
