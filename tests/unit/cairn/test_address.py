"""HOST:PORT: what is one, where a node listens, and where it is dialled from its own machine."""

import pytest

from cairn.address import Address
from cairn.config import AddressText, Settings
from cairn.errors import UsageError

NO_ADDRESSES = ["", "host", ":1", "host:", "host:0", "host:65536", "host:x", "h:²", "h:٣"]


class File(Settings):
    at: AddressText


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="should be HOST:PORT"):
        Address.parse(text)


@pytest.mark.parametrize("text", NO_ADDRESSES)
def test_a_file_takes_no_other_addresses(text: str) -> None:
    with pytest.raises(ValueError, match='should be "HOST:PORT"'):
        File(at=text)


@pytest.mark.parametrize(
    ("dialled", "listen"),
    [
        ("localhost:1", "127.0.0.1:1"),
        ("127.0.0.2:1", "127.0.0.2:1"),
        ("[::1]:1", "[::1]:1"),
        ("[2001:db8::1]:1", "[::]:1"),
        ("192.0.2.1:65535", "0.0.0.0:65535"),
        ("aggregator:1", "0.0.0.0:1"),
    ],
)
def test_a_node_listens_where_it_is_dialled(dialled: str, listen: str) -> None:
    assert Address.parse(dialled).listen == listen


@pytest.mark.parametrize(
    ("listens", "dialled"),
    [
        ("0.0.0.0:1", "localhost:1"),
        ("[::]:1", "localhost:1"),
        ("[::1]:1", "[::1]:1"),
        ("10.0.0.0:1", "10.0.0.0:1"),
        ("agg.example.org:1", "agg.example.org:1"),
    ],
)
def test_what_listens_on_every_address_is_dialled_as_localhost(listens: str, dialled: str) -> None:
    assert Address.parse(listens).dialled_here == dialled


@pytest.mark.parametrize("text", ["host:1", "192.0.2.1:65535", "[2001:db8::1]:80"])
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(Address.parse(text)) == text
