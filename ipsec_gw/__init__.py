"""ipsec-gw: IPsec acceleration beside an untouched strongSwan."""

__version__ = "0.1.0"
