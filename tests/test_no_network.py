"""The tests' own process reaches no other machine, whatever it asks with."""

from __future__ import annotations

import asyncio
import socket
import threading
import urllib.request
from collections.abc import Callable

import httpx
import pytest

from tests.no_network import is_local, refused


def by_socket() -> None:
    socket.create_connection(("192.0.2.1", 80), timeout=5)


def by_name() -> None:
    socket.getaddrinfo("example.com", 443)


def by_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("192.0.2.1", 53))


def by_urllib() -> None:
    urllib.request.urlopen("http://192.0.2.1/", timeout=5)


def by_asyncio() -> None:
    asyncio.run(asyncio.wait_for(asyncio.open_connection("2001:db8::1", 80), 5))


@pytest.mark.parametrize("ask", [by_socket, by_name, by_datagram, by_urllib, by_asyncio])
def test_another_machine_is_out_of_reach(ask: Callable[[], None]) -> None:
    before = len(refused)
    with pytest.raises(OSError, match="reach no other machine"):
        ask()
    assert len(refused) > before


def test_httpx_says_that_it_could_not_connect() -> None:
    with pytest.raises(httpx.ConnectError):
        httpx.get("http://192.0.2.1/", timeout=5)


def test_the_machine_itself_is_in_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: server.accept()[0].sendall(b"here"))
        thread.start()
        with socket.create_connection(("localhost", server.getsockname()[1]), timeout=5) as client:
            assert client.recv(4) == b"here"
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost", b"localhost", "", None])
def test_names_and_numbers_of_this_machine(host: object) -> None:
    assert is_local(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "fe80::1%eth0", "example.com", b"example.com", "localhost.example.com"])
def test_names_and_numbers_of_others(host: object) -> None:
    assert not is_local(host)
