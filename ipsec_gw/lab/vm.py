"""A virtual machine that has what this kernel lacks: a distribution kernel over this machine's own files.

Plain emulation suffices (about 5 s to boot); set ``IPSEC_GW_LAB_ACCEL=kvm`` where KVM works.
"""

from __future__ import annotations

import asyncio
import compileall
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import ipsec_gw
from ipsec_gw.errors import EnvironmentMissing, IpsecGwError
from ipsec_gw.lab.initramfs import Share, image
from ipsec_gw.lab.process import dies_with_parent, need_tools
from ipsec_gw.lab.progress import BOOTED
from ipsec_gw.lab.session import exchange_directory

MEMORY, PROCESSORS = "4G", 2
COMMAND_LINE = "console=ttyS0 quiet panic=-1 mitigations=off tsc=reliable cryptomgr.notests=1"
BOOT_SECONDS, BOOTS = 120.0, 3
"""A boot takes 5 to 15 s. Emulation with two processors has been seen to stop in the middle of one, for good: then
the machine is started again, this often at most. Nothing of the job has run by then."""

KEPT = ("IPSEC_GW_VPP", "BCC_KERNEL_SOURCE", "PYTHONPATH")
"""Environment variables that the job has as we have them: it runs the same code with the same tools."""

NO_VERDICT = 125
"""Exit code of a guest that never told one (as docker and podman use it)."""

TOOLS = {"qemu-system-x86_64": "qemu-system-x86", "modprobe": "kmod"}


class GuestFailed(IpsecGwError):
    """The virtual machine did not come to an end of its own; the end of its console is in the text."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """A bootable kernel with its modules."""

    release: str
    file: Path


def newest_kernel(boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")) -> Kernel:
    """The newest Debian kernel that has its modules. Raises EnvironmentMissing."""
    found = [
        Kernel(path.name.removeprefix("vmlinuz-"), path)
        for path in boot.glob("vmlinuz-*-amd64")
        if (modules / path.name.removeprefix("vmlinuz-")).is_dir()
    ]
    if not found:
        raise EnvironmentMissing(f"no {boot}/vmlinuz-*-amd64 with modules - apt install linux-image-amd64")
    return max(found, key=lambda kernel: [int(part) for part in re.findall(r"\d+", kernel.release)])


def shares() -> tuple[Share, ...]:
    """What the guest may cache: the system's programs, this Python's environment, this package's source, and VPP."""
    project = Path(ipsec_gw.__file__).resolve().parent.parent
    wanted = [Path("/usr"), Path(sys.prefix).resolve(), project, *vpp_prefix()]
    outermost = [
        path for path in dict.fromkeys(wanted) if not any(other in path.parents for other in wanted if other != path)
    ]
    return tuple(Share(f"share{number}", path) for number, path in enumerate(outermost))


def vpp_prefix() -> list[Path]:
    """Where VPP is installed, if it is."""
    from vpp_conf.locate import locate_vpp  # noqa: PLC0415 - it starts VPP to ask its version

    try:
        return [locate_vpp().prefix]
    except EnvironmentMissing:
        return []


def compile_packages() -> None:
    """Have byte code ready: the guest mounts the packages read-only and compiles slowly."""
    root = Path(ipsec_gw.__file__).resolve().parent.parent
    for name in ("ipsec_gw", "xdp_steer", "vpp_conf"):
        compileall.compile_dir(root / name, quiet=2)


def qemu_command(kernel: Kernel, initrd: Path, shared: tuple[Share, ...], job: Path, console: Path) -> list[str]:
    """The argument list: first serial port is the kernel's (into a file), the second one is the job's."""
    virtfs = "security_model=none,multidevs=remap"
    command = ["qemu-system-x86_64", "-M", "q35", *accelerator(), "-smp", str(PROCESSORS), "-m", MEMORY]
    command += ["-display", "none", "-no-reboot", "-nodefaults", "-monitor", "none"]
    command += ["-serial", f"file:{console}", "-serial", "stdio"]
    command += ["-kernel", str(kernel.file), "-initrd", str(initrd), "-append", f"{COMMAND_LINE} lab_job={job}"]
    command += ["-virtfs", f"local,path=/,mount_tag=root,{virtfs}"]
    for share in shared:
        command += ["-virtfs", f"local,path={share.path},mount_tag={share.tag},readonly=on,{virtfs}"]
    return command


def accelerator() -> list[str]:
    """Emulation unless the environment asks for something else: a KVM device that exists may still not work."""
    chosen = os.environ.get("IPSEC_GW_LAB_ACCEL", "tcg")
    if chosen == "tcg":
        return ["-accel", "tcg,thread=multi", "-cpu", "max"]
    return ["-accel", chosen, "-cpu", "host"]


def job_script(argv: list[str], status: Path, directory: Path) -> str:
    """What the guest executes; ``. script`` of a POSIX shell."""
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in kept.items())
    return (
        f"echo {shlex.quote(BOOTED)}\n"
        f"{exports}export TERM=dumb PYTHONUNBUFFERED=1 IPSEC_GW_LAB_GUEST=1\n"
        "ip link set lo up\n"
        f"cd {shlex.quote(str(directory))}\n"
        f"{shlex.join(argv)}\n"
        f"echo $? >{shlex.quote(str(status))}\n"
    )


@dataclass(frozen=True, slots=True)
class Guest:
    """A virtual machine that ended: the exit code of its job and the process id it had."""

    code: int
    pid: int


async def shell_in_vm(argv: list[str]) -> int:
    """Run ``argv`` in the virtual machine and then a shell on our terminal; returns qemu's exit code."""
    need_tools(TOOLS)
    kernel, shared = newest_kernel(), shares()
    initrd = await image(kernel.release, shared)
    with exchange_directory() as name:
        exchange = Path(name)
        job = exchange / "job.sh"
        shell = ["setsid", "--ctty", "--wait", "bash", "-i"]
        job.write_text(job_script(argv, exchange / "status", exchange) + shlex.join(shell) + "\n")
        command = qemu_command(kernel, initrd, shared, job, exchange / "console")
        # Ctrl-C belongs to the guest's shell, not to qemu.
        where = command.index("stdio")
        command[where - 1 : where + 1] = ["-chardev", "stdio,id=job,signal=off", "-serial", "chardev:job"]
        process = await asyncio.create_subprocess_exec(*command, preexec_fn=dies_with_parent(signal.SIGKILL))
        try:
            return await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def run_in_vm(argv: list[str], exchange: Path, told: Callable[[str], None], *, timeout: float) -> Guest:
    """Run ``argv`` as root in the virtual machine.

    ``exchange`` is a directory on this machine's disk that the job may write to. Each line the job writes goes to
    ``told``, live, the first is :data:`~ipsec_gw.lab.progress.BOOTED`. The job has ``timeout`` seconds. However this
    ends, the machine is gone then. Raises GuestFailed and EnvironmentMissing.
    """
    need_tools(TOOLS)
    kernel, shared = newest_kernel(), shares()
    initrd = await image(kernel.release, shared)
    await asyncio.to_thread(compile_packages)
    job, status, console = exchange / "job.sh", exchange / "status", exchange / "console"
    job.write_text(job_script(argv, status, exchange))
    command = qemu_command(kernel, initrd, shared, job, console)
    for boot in range(1, BOOTS + 1):
        try:
            pid = await _run_once(command, told, timeout, console)
            break
        except _NotBooted as hung:
            if boot == BOOTS:
                raise GuestFailed(f"the virtual machine did not boot in {BOOTS} attempts: {hung}") from None
            told(f"the virtual machine did not boot in {BOOT_SECONDS:.0f} s, starting it again: {hung}")
    if not status.exists():
        raise GuestFailed(f"the virtual machine ended without a result: {_tail(console)}")
    return Guest(int(status.read_text().strip() or NO_VERDICT), pid)


class _NotBooted(Exception):
    """The guest never came to its job."""


async def _run_once(command: list[str], told: Callable[[str], None], timeout: float, console: Path) -> int:
    """Start the machine and wait for its end; returns the process id it had."""
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=1 << 22,
        start_new_session=True,
        preexec_fn=dies_with_parent(signal.SIGKILL),
    )
    booted = False
    try:
        async with asyncio.timeout(BOOT_SECONDS) as deadline:
            async for line in _lines(process):
                if line == BOOTED:
                    booted = True
                    deadline.reschedule(asyncio.get_running_loop().time() + timeout)
                told(line)
            await process.wait()
    except TimeoutError:
        if not booted:
            raise _NotBooted(_tail(console)) from None
        raise GuestFailed(f"the virtual machine was not done after {timeout:.0f} s: {_tail(console)}") from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.pid


async def _lines(process: asyncio.subprocess.Process) -> AsyncIterator[str]:
    if process.stdout is None:
        raise GuestFailed("qemu has no output pipe")
    async for line in process.stdout:
        if text := line.decode(errors="replace").rstrip():
            yield text


def _tail(console: Path) -> str:
    return console.read_text(errors="replace")[-600:].strip() if console.exists() else "no console output"
