"""Packets and SAs for the lab's tests: scapy makes them, the lab judges them."""

from ipaddress import IPv4Address

from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.ipsec import ESP, SecurityAssociation
from scapy.layers.l2 import ARP, Ether

from ipsec_gw.lab.capture import Frame
from ipsec_gw.lab.kernel_sas import KernelSa
from ipsec_gw.model.secret import Secret

A, B = "10.0.0.1", "10.0.0.2"
SALT = b"\xa1\xb2\xc3\xd4"

KERNEL_NAMES = {"AES-GCM": "rfc4106(gcm(aes))", "CHACHA20-POLY1305": "rfc7539esp(chacha20,poly1305)"}


def kernel_sa(key=bytes(range(16)), spi=0x1000ABCD, cipher="AES-GCM", salt=SALT, *, esn=False):
    return KernelSa(
        source=IPv4Address(A),
        destination=IPv4Address(B),
        spi=spi,
        reqid=1,
        aead=KERNEL_NAMES[cipher],
        key=Secret(key),
        salt=Secret(salt),
        octets=0,
        packets=0,
        esn=esn,
    )


def scapy_sa(key=bytes(range(16)), spi=0x1000ABCD, cipher="AES-GCM", salt=SALT):
    return SecurityAssociation(ESP, spi=spi, crypt_algo=cipher, crypt_key=key + salt, tunnel_header=IP(src=A, dst=B))


def inner(payload=b"hello", ttl=63):
    return IP(src="10.1.0.10", dst="10.2.0.10", ttl=ttl) / UDP(sport=1, dport=2) / payload


def esp_frame(sa, packet, *, seq=1, iv=None, high=None):
    protected = sa.encrypt(packet, seq_num=seq, iv=iv, esn_en=high is not None, esn=high or 0)
    return frame(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / protected)


def frame(packet, *, when=1700000000.25, interface="to-a", outgoing=False):
    return Frame(when, interface, outgoing, bytes(packet))


def arp_frame():
    return frame(Ether() / ARP())


def clear_frame(source="10.1.0.10", destination="10.2.0.10", *, outgoing=False):
    return frame(Ether() / IP(src=source, dst=destination) / ICMP(), outgoing=outgoing)
