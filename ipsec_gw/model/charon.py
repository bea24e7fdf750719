"""What strongSwan releases differ in, as far as it matters here."""

from __future__ import annotations

import re

BY_SAS_SINCE = (5, 9, 10)
"""From this strongSwan on the times of the SAs count, which the guardian writes."""


def goes_by_policies(version: str) -> bool:
    """Whether this strongSwan takes times of use, for `inactivity`, from the policies. One that does not tell a version
    is a recent one.
    """
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    return numbers is not None and tuple(map(int, numbers.groups())) < BY_SAS_SINCE
