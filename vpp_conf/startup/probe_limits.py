"""What the control groups of this process allow: memory, CPU time, hugepages, and which CPUs."""

from __future__ import annotations

from collections.abc import Iterator

from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import Limits

CGROUPS = "sys/fs/cgroup"
NO_LIMIT = 1 << 60
"""Version 1 of the control groups prints a number about the size of the address space for "no limit"."""

UNITS = {"KB": 1 << 10, "MB": 1 << 20, "GB": 1 << 30}


def read_limits(files: Files) -> Limits:
    """The tightest limits of this process's control groups and of those above them."""
    unified = _groups(files, "")
    amounts = [files.text(f"{group}/memory.max") for group in unified]
    amounts += [files.text(f"{group}/memory.limit_in_bytes") for group in _groups(files, "memory")]
    shares = [_share(files.text(f"{group}/cpu.max")) for group in unified]
    shares += [_share(_old_quota(files, group)) for group in _groups(files, "cpu")]
    return Limits(_least(amounts), min((share for share in shares if share), default=None), _hugepages(files, unified))


def read_cpuset(files: Files) -> frozenset[int]:
    """CPUs of the innermost cpuset, empty if none tells."""
    names = [f"{group}/cpuset.cpus.effective" for group in _groups(files, "")]
    names += [f"{group}/cpuset.effective_cpus" for group in _groups(files, "cpuset")]
    return next((cpus for name in names if (cpus := files.cpu_list(name))), frozenset())


def _groups(files: Files, controller: str) -> list[str]:
    """Folders, inner to outer, of a controller of version 1; without a name those of the unified hierarchy."""
    folders: list[str] = []
    for line in (files.text("proc/self/cgroup") or "").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller in controllers.split(","):
            mount = f"{CGROUPS}/{controllers}" if controllers and files.exists(f"{CGROUPS}/{controllers}") else ""
            mount = mount or (f"{CGROUPS}/{controller}" if controller else CGROUPS)
            folders += [f"{mount}{above}" for above in _upwards(path)]
    return folders


def _upwards(path: str) -> Iterator[str]:
    """``/a/b``, ``/a`` and the root, which is an empty string."""
    while path.strip("/"):
        yield path
        path = path.rpartition("/")[0]
    yield ""


def _least(texts: list[str | None]) -> int | None:
    amounts = [int(text) for text in texts if text and text.isdecimal() and int(text) < NO_LIMIT]
    return min(amounts, default=None)


def _share(text: str | None) -> float | None:
    """``QUOTA PERIOD`` in CPUs; ``max`` and -1 are no limit."""
    words = (text or "").split()
    if len(words) != 2 or not all(word.isdecimal() and int(word) for word in words):
        return None
    return int(words[0]) / int(words[1])


def _old_quota(files: Files, group: str) -> str:
    quota, period = (files.text(f"{group}/cpu.cfs_{name}_us") for name in ("quota", "period"))
    return f"{quota} {period}"


def _hugepages(files: Files, unified: list[str]) -> tuple[tuple[int, int], ...]:
    """Limits of ``hugetlb.2MB.max`` and its like."""
    found: dict[int, int] = {}
    for group in unified:
        for name in files.names(group, "hugetlb."):
            size, _, rest = name.removeprefix("hugetlb.").partition(".")
            limit = _least([files.text(f"{group}/{name}")])
            if rest == "max" and limit is not None and size[:-2].isdecimal() and size[-2:] in UNITS:
                page = int(size[:-2]) * UNITS[size[-2:]]
                found[page] = min(limit, found.get(page, limit))
    return tuple(sorted(found.items()))
