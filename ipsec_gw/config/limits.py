"""How much a configuration may hold. What the datapath bounds is held against its numbers by a test."""

from __future__ import annotations

MAX_ZONES = 63
"""Besides ``self``."""
MAX_INTERFACES = 1024
"""In all zones together."""
MAX_POOLS = 64
MAX_POOL_ADDRESSES = 65_536
MAX_FILTERS = 63
MAX_POLICERS = 256
MAX_SESSIONS = 16_777_216
MAX_SECONDS = 604_800
"""Of a timeout: a week."""
MAX_TERM_SERVICES = 2048
"""What one application term may become: destination port ranges times source port ranges."""
