"""Two network namespaces of this machine, joined by a cable that a test can cut. Needs root and `ip` of iproute2."""

import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

_ADDRESSES = ("10.203.0.1", "10.203.0.2")
_MACS = ("02:00:00:00:00:01", "02:00:00:00:00:02")
_NOBODY = "02:00:00:00:00:99"
_DEVICE = "eth0"
_numbers = itertools.count()

WHY_NOT = "two network namespaces cannot be made: that needs root and `ip` (Debian package iproute2)"


class Network:
    """Hosts 0 and 1, each with an address of its own; nothing else can be reached from them."""

    def __init__(self) -> None:
        name = f"mnist-test-{os.getpid()}-{next(_numbers)}"
        self._names = (f"{name}-0", f"{name}-1")

    @property
    def hosts(self) -> tuple[str, str]:
        """Their addresses."""
        return _ADDRESSES

    def __enter__(self) -> "Network":
        try:
            for name in self._names:
                _ip("netns", "add", name)
            first, second = self._names
            _ip(*f"link add {_DEVICE} netns {first} type veth peer name {_DEVICE} netns {second}".split())
            for host in (0, 1):
                self._ip(host, "link set lo up")
                self._ip(host, f"link set {_DEVICE} address {_MACS[host]} up")
                self._ip(host, f"address add {_ADDRESSES[host]}/24 dev {_DEVICE}")
            self.mend()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._remove()

    def prefix(self, host: int) -> tuple[str, ...]:
        """What a command starts with, to run on that host. `ip` becomes the command: its process id is the command's."""
        return ("ip", "netns", "exec", self._names[host])

    def cut(self, *, senders: Sequence[int] = (0, 1)) -> None:
        """From now on what these hosts send goes to a wrong MAC address: it is lost, and nobody is told."""
        for host in senders:
            self._send_to(host, _NOBODY)

    def mend(self) -> None:
        """Undo `cut`."""
        for host in (0, 1):
            self._send_to(host, _MACS[1 - host])

    def unplug(self) -> None:
        """Take the link down, which both hosts see."""
        self._ip(0, f"link set {_DEVICE} down")

    def plug_in(self) -> None:
        """Undo `unplug`."""
        self._ip(0, f"link set {_DEVICE} up")
        self.mend()  # a link that goes down forgets its neighbours

    def _send_to(self, host: int, mac: str) -> None:
        self._ip(host, f"neigh replace {_ADDRESSES[1 - host]} lladdr {mac} dev {_DEVICE} nud permanent")

    def _ip(self, host: int, command: str) -> None:
        _ip("-n", self._names[host], *command.split())

    def _remove(self) -> None:
        for name in self._names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def with_hosts_file(path: Path) -> tuple[str, ...]:
    """What a command starts with, to see this file as /etc/hosts. It may change later, if it is written in place."""
    return ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(path))


@functools.cache
def can_make_networks() -> bool:
    """Whether this process may make them."""
    if os.getuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with Network():
            return True
    except OSError:
        return False
