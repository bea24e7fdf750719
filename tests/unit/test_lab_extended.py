"""Extended sequence numbers in the kernel's own layout."""

import struct

import pytest

from ipsec_gw.errors import XfrmError
from ipsec_gw.lab import extended
from ipsec_gw.lab.extended import XFRMA_REPLAY_ESN_VAL, Counts, counts, move_on
from tests.unit.test_lab_kernel_sas import aead, attribute, usersa

SPI = 0xC0FFEE01


def state(sent=5, received=7):
    words = (4, sent & 0xFFFFFFFF, received & 0xFFFFFFFF, sent >> 32, received >> 32, 128)
    return attribute(XFRMA_REPLAY_ESN_VAL, struct.pack("=6I", *words) + b"\xff" * 16)


@pytest.fixture
def kernel(monkeypatch):
    """What is asked of a kernel with one SA that has extended numbers, and one that has not."""
    asked = []
    held = (usersa(flags=128) + aead() + state((1 << 32) + 9, 3), usersa() + aead())
    monkeypatch.setattr(extended, "bodies", lambda namespace: held)
    monkeypatch.setattr(extended, "_ask", lambda namespace, body: asked.append(body))
    return asked


def test_both_halves_are_read(kernel):
    assert counts("any") == {SPI: Counts((1 << 32) + 9, 3)}


def test_what_is_sent_is_moved_on_and_nothing_else(kernel):
    move_on("any", SPI, (2 << 32) + 1)
    (body,) = kernel
    assert len(body) == 48 + 4 + 24 + 16
    assert body[16:20] == struct.pack(">I", SPI)
    assert struct.unpack_from("=II", body, 40) == (2, 7), "XFRM_AE_RVAL and the reqid"
    assert struct.unpack_from("=HH", body, 48) == (44, XFRMA_REPLAY_ESN_VAL)
    assert struct.unpack_from("=6I", body, 52) == (4, 1, 3, 2, 0, 128)
    assert body[76:] == b"\xff" * 16


@pytest.mark.parametrize(("spi", "number"), [(SPI, (1 << 32) + 9), (SPI, 1), (SPI + 1, 1 << 40)])
def test_numbers_never_come_again(kernel, spi, number):
    with pytest.raises(XfrmError, match="cannot be moved on"):
        move_on("any", spi, number)
    assert kernel == []
