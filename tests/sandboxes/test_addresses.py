"""Which hosts and addresses a sandbox may name."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import psutil
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fermata.sandboxes.addresses import (
    Target,
    is_own,
    parse_authority,
    refuse_address,
    refuse_name,
    unwrap,
)

REFUSED = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "100.127.255.255",
    "127.0.0.1", "127.255.255.254", "168.63.129.16", "169.254.169.254", "169.254.170.2", "172.16.0.1",
    "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.0.1", "192.168.255.255",
    "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::8.8.8.8", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:10::1", "2001:db8::1",
    "2002:7f00:1::1", "2002:808:808::1", "3fff::1", "4000::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%eth0", "2606:4700::1%eth0", "fec0::1", "ff02::1",
]  # fmt: skip
ALLOWED = [
    "1.1.1.1", "8.8.8.8", "100.63.255.255", "100.128.0.1", "172.15.255.255", "172.32.0.1", "169.253.1.1",
    "192.0.1.1", "198.17.255.255", "198.20.0.1", "223.255.255.255", "2606:4700:4700::1111", "2a00:1450::1",
    "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::808:808",
]  # fmt: skip


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert refuse_address(ip_address(address))


@pytest.mark.parametrize("address", ALLOWED)
def test_a_public_address_is_allowed(address: str) -> None:
    assert refuse_address(ip_address(address)) is None


@given(st.ip_addresses(v=4))
def test_wrapping_an_ipv4_address_changes_no_decision(address: IPv4Address) -> None:
    for wrapped in (f"::ffff:{address}", f"64:ff9b::{address}"):
        assert unwrap(ip_address(wrapped)) == address
        assert refuse_address(ip_address(wrapped)) == refuse_address(address)


@given(st.ip_addresses())
def test_nothing_that_the_standard_library_calls_local_is_allowed(address: IPv4Address | IPv6Address) -> None:
    if refuse_address(address) is None:
        inner = unwrap(address)
        assert inner.is_global
        assert not inner.is_multicast
        assert not inner.is_reserved or inner in ip_network("2000::/3")


def test_an_address_of_this_machine_is_refused_whatever_it_is() -> None:
    own = {
        ip_address(entry.address.partition("%")[0])
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }
    assert own
    for address in own:
        if not address.is_link_local:
            assert is_own(address), address
    assert not is_own(ip_address("8.8.8.8"))


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("example.com:443", Target("example.com", 443)),
        ("EXAMPLE.com.:443", Target("example.com", 443)),
        ("a_b.example.com:1", Target("a_b.example.com", 1)),
        ("8.8.8.8:65535", Target("8.8.8.8", 65535)),
        ("[2606:4700:0::1]:443", Target("2606:4700::1", 443)),
        ("xn--bcher-kva.example:80", Target("xn--bcher-kva.example", 80)),
        ("example.com", None),
        ("example.com:", None),
        ("example.com:0", None),
        ("example.com:65536", None),
        ("example.com:+80", None),
        ("example.com:8²", None),
        ("example.com:80:80", None),
        ("user@example.com:80", None),
        ("user:word@example.com:80", None),
        (":80", None),
        (".:80", None),
        ("a..b:80", None),
        ("-a.example:80", None),
        ("a b.example:80", None),
        ("bücher.example:80", None),
        ("127.1:80", None),
        ("2130706433:80", None),
        ("0x7f000001:80", None),
        ("0177.0.0.1:80", None),
        ("1.2.3.0x4:80", None),
        ("1.2.3.4.:80", None),
        ("1.2.3.4.5:80", None),
        ("a.0x:80", None),
        ("::1:80", None),
        ("[::1]", None),
        ("[::1]80", None),
        ("[::1:80", None),
        ("[fe80::1%eth0]:80", None),
        ("[1.2.3.4]:80", None),
        ("[example.com]:80", None),
        (f"{'a' * 64}.example:80", None),
        (f"{'a.' * 127}example:80", None),
        ("", None),
    ],
)
def test_an_authority_is_read_strictly(text: str, target: Target | None) -> None:
    assert parse_authority(text) == target


def test_a_default_port_is_used_only_where_none_is_named() -> None:
    assert parse_authority("example.com", default_port=80) == Target("example.com", 80)
    assert parse_authority("[::1]", default_port=80) == Target("::1", 80)
    assert parse_authority("example.com:81", default_port=80) == Target("example.com", 81)
    assert parse_authority("example.com:", default_port=80) is None


@given(st.text() | st.from_regex(r"[a-z0-9.:\[\]x%@-]{1,40}", fullmatch=True))
@example("1.2.3.4:080")
def test_what_is_read_is_read_the_same_again_and_never_an_odd_address(text: str) -> None:
    target = parse_authority(text)
    if target is None:
        return
    assert parse_authority(target.authority) == target
    if target.literal is None:
        # A resolver that takes numbers for addresses must not take this for one.
        with pytest.raises(OSError):
            socket.inet_aton(target.host)


@pytest.mark.parametrize(
    "host", ["localhost", "printer", "metadata.google.internal", "a.local", "a.localhost", "nas.home.arpa"]
)
def test_a_name_of_a_local_network_is_not_looked_up(host: str) -> None:
    assert refuse_name(host)


@pytest.mark.parametrize("host", ["example.com", "internal.example.com", "locallocal.net", "8.8.8.8", "::1"])
def test_any_other_name_is_looked_up(host: str) -> None:
    assert refuse_name(host) is None
