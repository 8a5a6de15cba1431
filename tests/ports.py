"""Ports of this machine for servers that are started later, in another process."""

import contextlib
import itertools
import os
import socket

_ports = itertools.cycle(range(10_000 + os.getpid() * 100 % 20_000, 32_000))


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, and that the kernel gives nobody until they are taken: below those that it gives."""
    found: list[int] = []
    while len(found) < count:
        with contextlib.suppress(OSError):
            socket.create_server(("127.0.0.1", port := next(_ports))).close()
            found.append(port)
    return found
