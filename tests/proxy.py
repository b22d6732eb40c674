"""A TCP proxy for tests, which does to a server's answers what networks do: cut them, or change them."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

Spoil = Callable[[bytes], bytes | None]
"""What becomes of a piece of an answer; None cuts the connection."""


@contextmanager
def proxy(
    endpoint: str, spoil: Spoil = lambda data: data, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1"
) -> Iterator[str]:
    """The endpoint, on this machine's `address`, of a proxy before the http:// server at `endpoint`, until the block
    ends; https:// with `tls`."""
    host, _, port = urlsplit(endpoint).netloc.partition(":")
    listener = socket.create_server((address, 0))
    listener.settimeout(0.1)
    over = threading.Event()

    def accept() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    def serve(client: socket.socket) -> None:
        with suppress(OSError):  # a connection that ends, from whichever side
            client.settimeout(None)
            client = client if tls is None else tls.wrap_socket(client, server_side=True)
            server = socket.create_connection((host, int(port)))
            threading.Thread(target=pump, args=(client, server, lambda data: data), daemon=True).start()
            pump(server, client, spoil)

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://{address}:{listener.getsockname()[1]}"
    finally:
        over.set()
        thread.join()
        listener.close()


def pump(source: socket.socket, target: socket.socket, spoil: Spoil) -> None:
    """Pass on what comes until either side ends."""
    with source, target, suppress(OSError):
        while data := source.recv(1 << 16):
            passed = spoil(data)
            if passed is None:
                break
            target.sendall(passed)
        for end in (source, target):
            end.shutdown(socket.SHUT_RDWR)
