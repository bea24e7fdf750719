"""`ipsec-gw run` and `ipsec-gw off`."""

from __future__ import annotations

import contextlib
import time

import click

from ipsec_gw.cli.main import Options, run_async
from ipsec_gw.config.model import EngineChoice
from ipsec_gw.errors import EnvironmentMissing, IpsecGwError
from ipsec_gw.observe.sdnotify import OFF_CODE

_OFF_SECONDS = 60.0
_POLL_SECONDS = 0.05


@click.command()
@click.option("--engine", type=click.Choice([choice.value for choice in EngineChoice]), help="Overrides the file.")
@click.option("--vici", help="charon's vici socket, unix:///path; overrides the file.")
@click.option("--wan", multiple=True, help="A WAN interface (repeatable); overrides the file.")
@click.pass_context
def run(ctx: click.Context, /, engine: str | None, vici: str | None, wan: tuple[str, ...]) -> None:
    """Run the gateway in the foreground. Stopping it leaves the data path as it is. Exit code 3: `off` ended it."""
    from ipsec_gw import daemon  # noqa: PLC0415 - heavy imports, only here
    from ipsec_gw.firewall.compiled import load_compiled  # noqa: PLC0415
    from ipsec_gw.gateway import Paths  # noqa: PLC0415

    options: Options = ctx.obj
    config = load_compiled(options.config)
    given = {"engine": engine and EngineChoice(engine), "vici": vici, "wan": wan or None}
    chosen = config.gateway.model_copy(update={key: value for key, value in given.items() if value is not None})
    config = config.model_copy(update={"gateway": chosen})
    paths = Paths(options.run_dir, options.pins)
    if run_async(daemon.run(config, paths, lambda: load_compiled(options.config))) is daemon.Ending.OFF:
        ctx.exit(OFF_CODE)


@click.command()
@click.pass_obj
def off(options: Options) -> None:
    """Give everything back to strongSwan and the kernel and remove every trace, at once."""
    from ipsec_gw.gateway import Paths, check_machine, hand_back, remove_everything  # noqa: PLC0415
    from ipsec_gw.observe import control, lock  # noqa: PLC0415

    paths = Paths(options.run_dir, options.pins)
    check_machine(paths)
    deadline = time.monotonic() + _OFF_SECONDS
    while lock.held(options.run_dir):  # a daemon that only starts is waited for, or it would put everything back
        if control.listening(options.run_dir):
            with contextlib.suppress(EnvironmentMissing):  # it ended between the two questions
                control.ask(options.run_dir, "off")
        if time.monotonic() > deadline:
            raise IpsecGwError(f"the daemon did not hand over within {_OFF_SECONDS:g} s - stop it and repeat")
        time.sleep(_POLL_SECONDS)
    with lock.hold(options.run_dir):
        run_async(hand_back(paths))
        run_async(remove_everything(paths))
    lock.remove(options.run_dir)
