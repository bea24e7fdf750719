"""The initial RAM disk of the lab's virtual machine: busybox, the modules it needs, and a small init.

Modules are loaded from here, in order, because modprobe over the shared root is slow under emulation.
"""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.lab.process import run

MODULES = (
    *("virtio_pci", "9pnet_virtio", "9p", "veth", "bridge", "af_packet", "sch_ingress", "cls_bpf", "act_bpf", "tun"),
    *("esp4", "esp6", "gcm", "ccm", "ctr", "cbc", "seqiv", "echainiv", "authenc", "hmac", "cmac", "xcbc"),
    *("ghash-generic", "ghash-clmulni-intel", "chacha20poly1305", "sha256_generic", "aesni_intel"),
    *(
        "xfrm_user",
        "xfrm_interface",
        "ip_vti",
        "ip_gre",
        "ipip",
        "vxlan",
        "af_key",
        "ah4",
        "ipcomp",
        "deflate",
        "sha1_generic",
        "sha512_generic",
    ),
    *("nf_tables", "nft_chain_nat", "nft_masq", "nf_conntrack_netlink"),
)
"""What the guest needs; a name that is built in or unknown to a kernel is skipped."""

INIT = """\
#!/bin/busybox sh
b=/bin/busybox
$b mount -t devtmpfs d /dev; $b mount -t proc p /proc
echo "loading modules"
for m in $($b cat /mods/order); do $b insmod "/mods/$m" 2>/dev/null; done
# The root is shared read-write, so that the guest can hand results back: cache=mmap trusts nothing for long.
# What does not change during a run is mounted again read-only with cache=loose: imports are four times as fast.
echo "mounting shares"
opts=trans=virtio,version=9p2000.L,msize=1048576
$b mount -t 9p -o $opts,rw,cache=mmap,access=any root /new || { echo "no shared root"; $b poweroff -f; }
while read -r tag path; do $b mount -t 9p -o $opts,ro,cache=loose "$tag" "/new$path"; done </mods/shares
$b mount -t proc p /new/proc; $b mount -t sysfs s /new/sys; $b mount -t devtmpfs d /new/dev
$b mount -t tmpfs r /new/run; $b mount -t bpf b /new/sys/fs/bpf
$b mkdir -p /new/dev/shm /new/dev/hugepages /new/dev/pts
$b mount -t tmpfs t /new/dev/shm; $b mount -t hugetlbfs h /new/dev/hugepages; $b mount -t devpts p /new/dev/pts
job=$($b sed -n 's/.*lab_job=\\([^ ]*\\).*/\\1/p' /proc/cmdline)
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
echo "starting the job"
# Kernel threads share init's root: only after this chroot does the kernel find modprobe.
exec $b chroot /new /bin/sh -c ". '$job' </dev/ttyS1 >/dev/ttyS1 2>&1
sync; echo o >/proc/sysrq-trigger; while :; do sleep 1; done"
"""

TRAILER = "TRAILER!!!"

CACHED = 4
"""Images kept in the cache."""


@dataclass(frozen=True, slots=True)
class Share:
    """A directory that the guest sees read-only and may cache: a 9p mount tag and where it goes."""

    tag: str
    path: Path


@dataclass(frozen=True, slots=True)
class Entry:
    """A member of a cpio archive; ``mode`` as in ``stat.st_mode``."""

    name: str
    mode: int
    data: bytes = b""


def cpio(entries: list[Entry]) -> bytes:
    """An archive in the "newc" format (``Documentation/driver-api/early-userspace/buffer-format.rst``)."""
    out = bytearray()
    for inode, entry in enumerate([*entries, Entry(TRAILER, 0)], start=1):
        name = entry.name.encode() + b"\0"
        fields = (inode, entry.mode, 0, 0, 1, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        out += b"\0" * (-len(out) % 4)
        out += entry.data
        out += b"\0" * (-len(out) % 4)
    return bytes(out)


async def module_files(kernel: str) -> list[Path]:
    """The module files of :data:`MODULES` with all they depend on, in loading order."""
    ordered: dict[Path, None] = {}
    for name in MODULES:
        shown = await run(["modprobe", "-S", kernel, "--show-depends", name], check=False)
        for line in shown.stdout.splitlines():
            words = line.split()
            if words[:1] == ["insmod"]:
                ordered[Path(words[1])] = None
    return list(ordered)


def busybox() -> Path:
    """The static busybox. Raises EnvironmentMissing."""
    found = shutil.which("busybox", path="/bin:/usr/bin")
    if found is None:
        raise EnvironmentMissing("busybox is not installed - apt install busybox-static")
    return Path(found)


async def entries(kernel: str, shares: tuple[Share, ...]) -> list[Entry]:
    """The archive's members."""
    modules = await module_files(kernel)
    directories = [Entry(name, 0o040755) for name in ("bin", "mods", "proc", "dev", "new")]
    listed = "".join(f"{share.tag} {share.path}\n" for share in shares)
    return [
        *directories,
        Entry("bin/busybox", 0o100755, busybox().read_bytes()),
        Entry("init", 0o100755, INIT.encode()),
        Entry("mods/shares", 0o100644, listed.encode()),
        Entry("mods/order", 0o100644, "".join(f"{path.name}\n" for path in modules).encode()),
        *(Entry(f"mods/{path.name}", 0o100644, path.read_bytes()) for path in modules),
    ]


def cache_directory() -> Path:
    """Where images are kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipsec-gw" / "lab"


def cached(kernel: str, shares: tuple[Share, ...]) -> Path:
    """Where the image of a kernel is, or belongs, in the cache: another recipe gives another name."""
    modules_dep = Path(f"/lib/modules/{kernel}/modules.dep")
    if not modules_dep.exists():
        raise EnvironmentMissing(f"no modules of kernel {kernel} - apt install linux-image-amd64")
    recipe = repr((kernel, modules_dep.stat().st_mtime_ns, busybox().stat().st_mtime_ns, MODULES, INIT, shares))
    return cache_directory() / f"initrd-{kernel}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}.gz"


async def image(kernel: str, shares: tuple[Share, ...]) -> Path:
    """The compressed image for a kernel, built if the cache has none that fits."""
    path = cached(kernel, shares)
    if not path.exists():
        await asyncio.to_thread(store, path, await entries(kernel, shares))
    return path


def store(path: Path, members: list[Entry]) -> None:
    """Put an image into the cache, whole or not at all; a few of other checkouts and kernels may stay beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    older = sorted(path.parent.glob("initrd-*.gz"), key=lambda file: file.stat().st_mtime)
    for old in older[: -(CACHED - 1)]:
        old.unlink(missing_ok=True)
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(gzip.compress(cpio(members), 1))
    fresh.rename(path)
