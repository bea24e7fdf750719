"""The command line: options, exit codes and one-line errors. Data goes to stdout, everything else to stderr."""

from __future__ import annotations

import asyncio
import importlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import structlog

from ipsec_gw import __version__
from ipsec_gw.errors import IpsecGwError

DEFAULT_RUN_DIR = Path("/run/ipsec-gw")
DEFAULT_PINS = Path("/sys/fs/bpf/ipsec-gw")


@dataclass(frozen=True, slots=True)
class Options:
    """The global options."""

    config: Path | None
    run_dir: Path
    pins: Path


class LazyGroup(click.Group):
    """Commands whose modules are imported when they are called: `show` must not wait for the lab's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands."""
        return sorted({*super().list_commands(ctx), *_LAZY})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One command."""
        if cmd_name in _LAZY:
            module, name = _LAZY[cmd_name].split(":")
            command: click.Command = getattr(importlib.import_module(module), name)
            return command
        return super().get_command(ctx, cmd_name)


_LAZY = {
    "clear": "ipsec_gw.cli.sessions:clear",
    "check": "ipsec_gw.cli.check:check",
    "run": "ipsec_gw.cli.run:run",
    "fallback": "ipsec_gw.cli.hand:fallback",
    "off": "ipsec_gw.cli.run:off",
    "plan": "ipsec_gw.cli.reload:plan",
    "reload": "ipsec_gw.cli.reload:reload",
    "return": "ipsec_gw.cli.hand:give_back",
    "show": "ipsec_gw.cli.show:show",
    "units": "ipsec_gw.cli.units:units",
    "vpp": "ipsec_gw.cli.vpp:vpp",
    "lab": "ipsec_gw.lab.command:lab",
}


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "IPSEC_GW"})
@click.option(
    "--config", type=click.Path(path_type=Path), help="Configuration file (default: /etc/ipsec-gw/ipsec-gw.toml)"
)
@click.option("--run-dir", type=click.Path(path_type=Path), default=DEFAULT_RUN_DIR, show_default=True, help="Sockets.")
@click.option("--pins", type=click.Path(path_type=Path), default=DEFAULT_PINS, show_default=True, help="BPF pins.")
@click.option("-v", "--verbose", is_flag=True, help="Log debug messages as well.")
@click.version_option(__version__, prog_name="ipsec-gw")
@click.pass_context
def cli(ctx: click.Context, config: Path | None, run_dir: Path, pins: Path, verbose: bool) -> None:
    """IPsec acceleration beside an untouched strongSwan."""
    configure_logging(verbose)
    ctx.obj = Options(config, run_dir.absolute(), pins.absolute())


def configure_logging(verbose: bool) -> None:
    """Log to stderr: coloured lines for people, JSON lines for machines."""
    for_people = [structlog.dev.ConsoleRenderer()]  # shows exceptions itself
    for_machines = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(for_people if sys.stderr.isatty() else for_machines),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


def run_async(work: Any) -> Any:
    """Run a coroutine and let the first operator error out of task groups."""
    try:
        return asyncio.run(work)
    except BaseExceptionGroup as group:
        found = _first(group)
        if found is None:
            raise
        raise found from None


def _first(group: BaseExceptionGroup[BaseException]) -> IpsecGwError | None:
    for error in group.exceptions:
        if isinstance(error, IpsecGwError):
            return error
        if isinstance(error, BaseExceptionGroup) and (inner := _first(error)):
            return inner
    return None


def main() -> None:
    """Entry point of the console script."""
    try:
        code = cli.main(standalone_mode=False)
        if isinstance(code, int):  # what a command gave to ctx.exit()
            sys.exit(code)
    except click.exceptions.Exit as request:
        sys.exit(request.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except IpsecGwError as error:
        click.echo(f"ipsec-gw: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
