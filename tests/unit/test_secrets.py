"""Keys live in memory only (DESIGN.md, invariant 6): a canary key is planted and searched for in all we emit."""

from __future__ import annotations

import json
import logging
import pickle
import traceback

import pytest
import structlog

from ipsec_gw.desired import desired
from ipsec_gw.errors import IpsecGwError
from ipsec_gw.model.ids import EngineName
from ipsec_gw.model.secret import Secret
from ipsec_gw.observe.views import record_view, sa_view
from ipsec_gw.reconcile.plan import describe, plan
from ipsec_gw.reconcile.record import Outcome, Record, Step
from tests.support.world import CANARY, OFFER, SETTINGS, established


def forms(secret: bytes) -> list[str]:
    """The ways a key could show: hex, decimal list, repr, base64-ish text, big-endian integer."""
    half = secret[:8]
    return [
        secret[:16].hex(),
        half.hex(),
        ", ".join(str(b) for b in half),
        repr(half)[2:-1],
        str(int.from_bytes(secret[:16], "big")),
        str(int.from_bytes(secret, "big")),
    ]


def assert_clean(text: str) -> None:
    for form in forms(CANARY):
        assert form not in text, text[:200]


def test_the_search_finds_a_leak() -> None:
    for leak in (CANARY.hex(), repr(CANARY), str(list(CANARY))):
        with pytest.raises(AssertionError):
            assert_clean(leak)


def test_a_secret_never_shows() -> None:
    secret = Secret(CANARY)
    assert_clean(f"{secret} {secret!r} {secret:>40} {[secret]} {vars}")
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    with pytest.raises(TypeError):
        json.dumps({"key": secret})
    assert secret == Secret(CANARY)
    assert secret != Secret(CANARY[1:])
    assert secret != CANARY
    assert secret.reveal() == CANARY


def test_values_views_records_and_plans_are_clean() -> None:
    look = established()
    result = desired(OFFER, SETTINGS, look)
    operations = plan(result.objects, {})
    record = Record(0.0, 0.0, tuple(Step(op, Outcome.FAILED, f"{op}") for op in operations))
    views = [sa_view(v, look.names, EngineName.VPP, {}) for v in result.verdicts]
    shown = [
        repr(look),
        repr(result),
        repr(operations),
        repr(record),
        json.dumps(record_view(record)),
        repr(views),
        "\n".join(describe(op.obj) for op in operations if op.obj),
        "\n".join(map(str, operations)),
    ]
    assert len(operations) > 5
    for text in shown:
        assert_clean(text)


def test_logs_and_tracebacks_are_clean(capsys: pytest.CaptureFixture[str]) -> None:
    structlog.reset_defaults()
    log = structlog.get_logger()
    result = desired(OFFER, SETTINGS, established())
    log.info("objects", objects=result.objects)
    try:
        raise IpsecGwError(f"refused {list(result.objects.values())}")
    except IpsecGwError:
        log.exception("failed", objects=result.objects)
        assert_clean(traceback.format_exc())
        logging.getLogger("x").error("%s", result.objects)
    captured = capsys.readouterr()
    assert "refused" in captured.out + captured.err
    assert_clean(captured.out + captured.err)
