"""sd_notify(3) against a socket of ours."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from ipsec_gw.observe.sdnotify import notify, watched


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1", "STATUS=in sync")
        assert systemd.recv(100) == b"READY=1\nSTATUS=in sync"


def test_without_systemd_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")


async def received(systemd: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(systemd, 100)


@pytest.mark.parametrize("named", [False, True])
async def test_the_watchdog_sees_that_we_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, named: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "2000")
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        if named:
            monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        async with watched():
            assert [await received(systemd) for _ in range(3)] == [b"WATCHDOG=1"] * 3


@pytest.mark.parametrize(("asked", "pid"), [("", None), ("0", None), ("2000", "1"), ("soon", None)])
async def test_a_watchdog_that_does_not_ask_us_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str, pid: str | None
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", asked)
        monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
        async with watched():
            await asyncio.sleep(0)  # a task would have had its turn
        with pytest.raises(BlockingIOError):
            systemd.recv(100)
