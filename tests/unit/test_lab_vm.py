"""The virtual machine's parts: archive, kernel choice, shares, command line."""

import asyncio
from pathlib import Path

import pytest

from ipsec_gw.errors import EnvironmentMissing
from ipsec_gw.lab import initramfs, vm
from ipsec_gw.lab.initramfs import Entry, Share, cpio
from ipsec_gw.lab.progress import BOOTED


def unpack(archive):
    """A reader of our own for the "newc" format."""
    offset, found = 0, {}
    while True:
        assert archive[offset : offset + 6] == b"070701"
        fields = [int(archive[offset + 6 + 8 * n : offset + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        start = offset + 110
        name = archive[start : start + name_size - 1].decode()
        body = (start + name_size + 3) & ~3
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, archive[body : body + size])
        offset = (body + size + 3) & ~3


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 4097])
def test_an_archive_can_be_read(size):
    data = bytes(range(256)) * 17
    archive = cpio([Entry("bin", 0o040755), Entry("bin/x", 0o100755, data[:size]), Entry("init", 0o100755, b"i")])
    assert unpack(archive) == {
        "bin": (0o040755, b""),
        "bin/x": (0o100755, data[:size]),
        "init": (0o100755, b"i"),
    }


def kernels(tmp_path, *releases, modules=()):
    (tmp_path / "boot").mkdir()
    (tmp_path / "modules").mkdir()
    for release in releases:
        (tmp_path / "boot" / f"vmlinuz-{release}").touch()
    for release in modules:
        (tmp_path / "modules" / release).mkdir()
    return tmp_path / "boot", tmp_path / "modules"


def test_the_newest_kernel_by_number_not_by_letter(tmp_path):
    found = ("6.1.0-9-amd64", "6.1.0-56-amd64", "5.10.0-99-amd64")
    assert vm.newest_kernel(*kernels(tmp_path, *found, modules=found)).release == "6.1.0-56-amd64"


def test_a_kernel_without_modules_does_not_count(tmp_path):
    found = ("6.1.0-9-amd64", "6.1.0-56-amd64")
    assert vm.newest_kernel(*kernels(tmp_path, *found, modules=found[:1])).release == "6.1.0-9-amd64"


def test_no_kernel_names_the_package(tmp_path):
    with pytest.raises(EnvironmentMissing, match="apt install linux-image-amd64"):
        vm.newest_kernel(*kernels(tmp_path, "6.1.0-56-amd64"))


def test_shares_do_not_nest():
    paths = [share.path for share in vm.shares()]
    assert Path("/usr") in paths
    assert not any(one in other.parents for one in paths for other in paths)


def test_the_job_comes_by_the_second_serial_port(tmp_path):
    command = vm.qemu_command(
        vm.Kernel("6.1", Path("/boot/vmlinuz-6.1")),
        Path("/i.gz"),
        (Share("share0", Path("/usr")),),
        Path("/j"),
        Path("/c"),
    )
    serial = [command[number + 1] for number, word in enumerate(command) if word == "-serial"]
    assert serial == ["file:/c", "stdio"]
    assert any("path=/usr" in word and "readonly=on" in word for word in command)
    assert command[command.index("-append") + 1].endswith(" lab_job=/j")


def test_the_job_hands_its_exit_code_back(tmp_path):
    script = vm.job_script(["prog", "with space"], tmp_path / "status", tmp_path)
    assert "prog 'with space'\necho $? >" in script


def test_another_recipe_is_another_image(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        kernel = vm.newest_kernel().release
        one = initramfs.cached(kernel, (Share("share0", Path("/usr")),))
        other = initramfs.cached(kernel, (Share("share0", Path("/opt")),))
    except EnvironmentMissing as missing:
        pytest.skip(str(missing))
    assert one != other
    assert one.parent == tmp_path / "ipsec-gw" / "lab"


def test_the_cache_keeps_few_images(monkeypatch, tmp_path):
    for number in range(initramfs.CACHED + 3):
        initramfs.store(tmp_path / f"initrd-{number}.gz", [Entry("init", 0o100755, b"x")])
    left = sorted(path.name for path in tmp_path.iterdir())
    assert len(left) == initramfs.CACHED
    assert f"initrd-{initramfs.CACHED + 2}.gz" in left


class Guests:
    """Shell scripts in place of qemu: ``scripts[n]`` is what the n-th start does. One that does not boot takes
    ``boot_seconds``, and one that does must not need longer on a busy machine.
    """

    def __init__(self, monkeypatch, tmp_path, *scripts, boot_seconds):
        self.directory, self.told = tmp_path, []
        started = tmp_path / "started"

        async def no_image(release, shared):
            return tmp_path / "initrd"

        def command(kernel, initrd, shared, job, console):
            cases = "".join(f"{number}) {script};;\n" for number, script in enumerate(scripts, start=1))
            return ["sh", "-c", f"echo x >>{started}; case $(wc -l <{started}) in {cases}esac"]

        monkeypatch.setattr(vm, "need_tools", lambda tools: None)
        monkeypatch.setattr(vm, "newest_kernel", lambda: vm.Kernel("6.1", tmp_path / "vmlinuz"))
        monkeypatch.setattr(vm, "image", no_image)
        monkeypatch.setattr(vm, "compile_packages", lambda: None)
        monkeypatch.setattr(vm, "qemu_command", command)
        monkeypatch.setattr(vm, "BOOT_SECONDS", boot_seconds)

    def run(self, timeout=30.0):
        return asyncio.run(vm.run_in_vm(["true"], self.directory, self.told.append, timeout=timeout))


HANGS = "echo half way >>console; exec sleep 600"
BOOTS = f"echo '{BOOTED}'; sleep 0.4; echo hello; echo 3 >status"


def test_a_guest_that_hangs_in_its_boot_is_started_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    guests = Guests(monkeypatch, tmp_path, HANGS, BOOTS, boot_seconds=3.0)
    guest = guests.run()
    assert guest.code == 3
    assert guests.told[1:] == [BOOTED, "hello"]
    assert "did not boot in 3 s, starting it again: half way" in guests.told[0]


def test_a_guest_that_never_boots_fails_with_its_console(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    guests = Guests(monkeypatch, tmp_path, HANGS, HANGS, HANGS, BOOTS, boot_seconds=0.2)
    with pytest.raises(vm.GuestFailed, match="did not boot in 3 attempts: half way"):
        guests.run()


def test_a_job_that_hangs_is_not_started_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    guests = Guests(monkeypatch, tmp_path, f"echo '{BOOTED}'; exec sleep 600", BOOTS, boot_seconds=60.0)
    with pytest.raises(vm.GuestFailed, match="not done after 0 s"):
        guests.run(timeout=0.1)
    assert guests.told == [BOOTED]
