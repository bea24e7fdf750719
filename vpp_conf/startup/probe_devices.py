"""Network interfaces and cryptographic devices, from sysfs."""

from __future__ import annotations

from vpp_conf.startup.files import Files
from vpp_conf.startup.machine import INTEL, QAT_PHYSICAL, QAT_VIRTUAL, CryptoDevice, Nic

NETWORK = "sys/class/net"
PCI = "sys/bus/pci/devices"
CRYPTO_CLASSES = (0x0B40, 0x1000, 0x1080)
"""Co-processor; network and other encryption controllers (the upper 16 bits of the PCI class)."""


def read_nics(files: Files) -> tuple[Nic, ...]:
    """All interfaces of this network namespace but the loopback, by name. Other files there have no MTU."""
    names = (name for name in files.names(NETWORK) if name != "lo")
    return tuple(_nic(files, name) for name in names if files.exists(f"{NETWORK}/{name}/mtu"))


def _nic(files: Files, name: str) -> Nic:
    folder = f"{NETWORK}/{name}"
    node = files.number(f"{folder}/device/numa_node")
    return Nic(
        name=name,
        driver=files.target(f"{folder}/device/driver"),
        node=node if node is not None and node >= 0 else None,
        rx_queues=max(1, len(files.names(f"{folder}/queues", "rx-"))),
        tx_queues=max(1, len(files.names(f"{folder}/queues", "tx-"))),
        mtu=files.number(f"{folder}/mtu") or 0,
        link_up=files.text(f"{folder}/operstate") == "up",
    )


def read_crypto(files: Files) -> tuple[CryptoDevice, ...]:
    """PCI devices of the classes for cryptography, and Intel QAT by its ids."""
    found = (_device(files, address) for address in files.names(PCI))
    return tuple(device for device in found if device is not None)


def _device(files: Files, address: str) -> CryptoDevice | None:
    folder = f"{PCI}/{address}"
    vendor, device, kind = (files.number(f"{folder}/{name}") or 0 for name in ("vendor", "device", "class"))
    is_qat = vendor == INTEL and (device in QAT_PHYSICAL or device in QAT_VIRTUAL)
    if not is_qat and kind >> 8 not in CRYPTO_CLASSES:
        return None
    group = files.target(f"{folder}/iommu_group")
    return CryptoDevice(
        address=address,
        vendor=vendor,
        device=device,
        driver=files.target(f"{folder}/driver"),
        node=max(0, files.number(f"{folder}/numa_node") or 0),
        parent=files.target(f"{folder}/physfn"),
        functions=files.number(f"{folder}/sriov_numvfs") or 0,
        functions_possible=files.number(f"{folder}/sriov_totalvfs") or 0,
        iommu_group=int(group) if group and group.isdecimal() else None,
    )
