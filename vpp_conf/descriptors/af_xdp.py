"""AF_XDP interfaces (``plugins/af_xdp/af_xdp.api``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ipsec_gw.errors import EngineError
from vpp_conf.api import VppApiError
from vpp_conf.descriptors.base import Descriptor
from vpp_conf.descriptors.interface import OWNER_TAG, RX_MODES, interfaces, named
from vpp_conf.startup.values import RxMode

KIND = "af_xdp"
MAC_REUSE = 2
"""``AF_XDP_API_FLAGS_MAC_REUSE``: VPP answers to the kernel interface's own MAC."""

NO_SYSCALL_LOCK = 1
"""``AF_XDP_API_FLAGS_NO_SYSCALL_LOCK``: with workers VPP refuses interrupt mode otherwise (a race before Linux 5.6)."""

MODE_AUTO = 0
"""``AF_XDP_API_MODE_AUTO``: zero-copy where the driver has it, else copies."""

ALL_QUEUES = 0xFFFF


@dataclass(frozen=True, slots=True)
class Reception:
    """How interfaces get their packets: ``placement`` is the worker of each queue by interface; interfaces that are not
    in it are left to VPP.
    """

    mode: RxMode = RxMode.INTERRUPT
    placement: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AfXdp:
    """An AF_XDP socket set on a kernel interface that carries a dock: VPP attaches no program of its own."""

    host_interface: str
    reception: Reception = field(default_factory=Reception, compare=False)
    sw_if_index: int = field(default=0, compare=False)

    @property
    def name(self) -> str:
        """VPP's name for it."""
        return f"xdp-{self.host_interface}"


class AfXdpDescriptor(Descriptor[AfXdp]):
    """AF_XDP interfaces. One that was deleted cannot be made again in the same VPP process (EBUSY).

    The owner's tag is put on by whoever completes the interface: without it, it is not adopted.
    """

    kind = KIND

    async def create(self, value: AfXdp) -> AfXdp:
        """One that was begun and not completed is gone on with. Raises EngineError naming the kernel interface."""
        begun = await named(self._api, value.name)
        sw_if_index = begun.sw_if_index if begun is not None else await self._open(value)
        await self._api.call(
            "sw_interface_set_rx_mode",
            sw_if_index=sw_if_index,
            queue_id_valid=False,
            mode=RX_MODES[value.reception.mode],
        )
        await self._place(sw_if_index, value.reception.placement.get(value.host_interface, ()))
        return replace(value, sw_if_index=sw_if_index)

    async def _open(self, value: AfXdp) -> int:
        try:
            reply = await self._api.call(
                "af_xdp_create_v3",
                host_if=value.host_interface,
                name=value.name,
                rxq_num=ALL_QUEUES,
                mode=MODE_AUTO,
                flags=MAC_REUSE | NO_SYSCALL_LOCK,
            )
        except VppApiError as error:
            raise EngineError(
                f"VPP cannot open AF_XDP sockets on {value.host_interface} ({error}) - is it up, docked and free of "
                "other sockets? After a delete VPP has to be restarted"
            ) from None
        return int(reply.sw_if_index)

    async def _place(self, sw_if_index: int, placement: tuple[int, ...]) -> None:
        """The kernel may have other queues by now than were planned for: they go on in turn."""
        if not placement:
            return
        for row in await self._api.dump("sw_interface_rx_placement_dump", sw_if_index=sw_if_index):
            await self._api.call(
                "sw_interface_set_rx_placement",
                sw_if_index=sw_if_index,
                queue_id=row.queue_id,
                worker_id=placement[row.queue_id % len(placement)],
                is_main=False,
            )

    async def delete(self, value: AfXdp) -> None:
        """Closes the sockets; the kernel interface's packets go to the kernel again."""
        await self._api.call("af_xdp_delete", sw_if_index=value.sw_if_index)

    async def retrieve(self) -> tuple[AfXdp, ...]:
        """Those that the gateway made."""
        return tuple(
            AfXdp(interface.name.removeprefix("xdp-"), sw_if_index=interface.sw_if_index)
            for interface in (await interfaces(self._api)).values()
            if interface.name.startswith("xdp-") and interface.tag == OWNER_TAG
        )
