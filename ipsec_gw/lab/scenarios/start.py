"""Who takes part in a scenario, started so that the end of the run takes it down."""

from __future__ import annotations

from ipsec_gw.lab.context import Lab
from ipsec_gw.lab.gateway import GatewayUnderTest
from ipsec_gw.lab.strongswan import Party, Swan


async def start_swan(lab: Lab, site: Party, settings: str = "") -> Swan:
    """A charon of its own, with further ``settings``; it answers once :meth:`Swan.load` returned."""
    swan = await Swan.start(site, lab.session.run_dir / site.identity, settings)
    lab.stack.push_async_callback(swan.stop)
    lab.watch_process(swan.daemon.pid)
    return swan


def gateway_of(lab: Lab, swan: Swan, config: str = "", *, on_demand: bool = False) -> GatewayUnderTest:
    """The gateway beside a charon, not started yet; ``off`` is called in any case."""
    gateway = GatewayUnderTest(
        lab.session, swan.site.namespace, swan.files.vici, lab.options.engine, config, on_demand=on_demand
    )
    lab.stack.push_async_callback(gateway.off)
    return gateway
