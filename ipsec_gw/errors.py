"""Every error that ipsec-gw raises on purpose.

One tree, so that the command line can print one line and an exit code, and a caller can tell
what is worth a retry. Each message names the object and, after a dash, the way out.
"""


class IpsecGwError(Exception):
    """Base of all errors meant for the operator. ``exit_code`` is what the command line returns."""

    exit_code = 1


class ConfigError(IpsecGwError):
    """The configuration file cannot be read or does not hold; the text starts with ``file:line``."""

    exit_code = 2


class EnvironmentMissing(IpsecGwError):
    """The machine lacks something that is needed (root, bpffs, hugepages, a program, an interface)."""


class SteeringError(IpsecGwError):
    """XDP or TC refused: foreign program on the interface, verifier, pins that cannot be made."""


class IkeError(IpsecGwError):
    """strongSwan cannot be asked: vici socket absent, refused or hung."""


class XfrmError(IpsecGwError):
    """The kernel refused an XFRM request. ``errno`` holds the kernel's code."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


class EngineError(IpsecGwError):
    """An engine could not do what it was asked; the object that failed is named in the text."""


class EngineUnavailable(EngineError):
    """The engine is not there (VPP not installed, not running, API socket absent)."""


class Untouched(IpsecGwError):
    """It was not done, and nothing was changed on the way: what is in place is known without a look."""


class GoneError(Untouched):
    """The kernel deleted the SA meanwhile."""


class UsedKeyError(Untouched, EngineError):
    """An outbound key already left this gateway under the kernel: it must never be given to an engine."""
