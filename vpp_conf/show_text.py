"""Read what VPP's CLI prints about its memory, its AF_XDP interfaces and QAT. Pure; no API message tells these."""

from __future__ import annotations

import re
from collections.abc import Mapping

HEAP_ROW = re.compile(r"^\S+\s+\S+\s+(?:\d+\s+)?(?P<page>\d+[KMG])\s+.*\smain heap\s*$", re.MULTILINE)
ARENA = re.compile(r"^\s*arena 'buffers-numa-\d+' pages \d+ subpage-size (?P<page>\d+[KMG])\b", re.MULTILINE)
XDP_INTERFACE = re.compile(r"^xdp-(?P<name>\S+)\s+\d+\s+(?:up|down)\b.*\n(?P<body>(?:[ \t]+.*\n?)*)", re.MULTILINE)
FLAGS = re.compile(r"^\s*flags: (?P<flags>.*)$", re.MULTILINE)
ASSIGNED = re.compile(r"^\d+\s+\S+\s+\d+\s+\d+ \(", re.MULTILINE)


def parse_heap_page(text: str) -> str | None:
    """The size of the main heap's pages in ``show memory map``, as VPP writes it (``4K``); None if it does not say."""
    found = HEAP_ROW.search(text)
    return found["page"] if found else None


def parse_buffer_page(text: str) -> str | None:
    """The smallest size of buffers' pages in ``show physmem``; None if it does not say."""
    pages = {found["page"] for found in ARENA.finditer(text)}
    return min(pages, key=_bytes) if pages else None


def _bytes(page: str) -> int:
    return int(page[:-1]) << {"K": 10, "M": 20, "G": 30}[page[-1]]


def parse_zero_copy(text: str) -> Mapping[str, bool]:
    """AF_XDP interfaces in ``show hardware-interfaces`` by kernel names, and whether their sockets copy nothing."""
    return {
        found["name"]: (flags := FLAGS.search(found["body"])) is not None and "zero-copy" in flags["flags"].split()
        for found in XDP_INTERFACE.finditer(text)
    }


def parse_assigned(text: str) -> int:
    """Queue pairs that a thread has in ``show dpdk cryptodev assignment``: the others are ``free``."""
    return len(ASSIGNED.findall(text))
