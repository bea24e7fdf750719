"""What VPP's releases are known to do wrong with IPsec by AF_XDP, and what is done about it. Pure.

From VPP's history between the tags v24.10 and v26.06. What all releases do wrong is worked round where it is met.
"""

from __future__ import annotations

from dataclasses import dataclass

from vpp_conf.startup.syntax import Release, show
from vpp_conf.startup.values import Finding, Severity


@dataclass(frozen=True, slots=True)
class Defect:
    """Releases from ``since`` on have it (None: all of old), up to the one before ``mended`` (None: up to the newest).

    ``commit`` is the one of VPP's that mended it, or brought it.
    """

    text: str
    since: Release | None
    mended: Release | None
    severity: Severity
    commit: str
    answer: str = ""

    def concerns(self, release: Release) -> bool:
        """Whether that release has it."""
        return (self.since is None or self.since <= release) and (self.mended is None or release < self.mended)

    @property
    def way_out(self) -> str:
        """What an operator can do, or what was done already."""
        return self.answer or (f"install {show(self.mended)} or later" if self.mended else "")


DEFECTS = (
    Defect(
        "a peer that holds the keys of a tunnel can overwrite VPP's memory, by more padding than its packet has",
        since=None,
        mended=(26, 6),
        severity=Severity.WARNING,
        commit="ef5a3e9eaac",
    ),
    Defect(
        "the kernel is not woken when an AF_XDP interface lacks buffers to receive with: packets wait or are lost",
        since=None,
        mended=(25, 10),
        severity=Severity.WARNING,
        commit="421964a8d1e",
    ),
    Defect(
        "AES-CBC has 256 initialisation vectors per key: equal beginnings of packets show",
        since=(26, 2),
        mended=None,
        severity=Severity.NOTE,
        commit="9eed09d0f46",
        answer="none is needed: SAs with AES-CBC stay in the kernel, with every release",
    ),
)


def known_defects(release: Release) -> tuple[Finding, ...]:
    """Those of a release, with what can be done. A release newer than all known here has what no known one mended."""
    return tuple(
        Finding(
            defect.severity, "defect", f"VPP {show(release)}: {defect.text} (VPP's {defect.commit})", defect.way_out
        )
        for defect in DEFECTS
        if defect.concerns(release)
    )
