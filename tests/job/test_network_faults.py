"""The network between two workers fails, each worker in a network namespace of its own. Needs root and `ip`."""

import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import skip_or_fail
from tests.network import WHY_NOT, Network, can_make_networks, with_hosts_file
from tests.ports import free_ports
from tests.workers import Cluster, commit_of_one_process, digests, making_clusters

pytestmark = [pytest.mark.tf, pytest.mark.full, pytest.mark.timeout(400)]

FLAGS = ("--train.epochs=12", "--checkpoint.interval_seconds=0.2")
PEER_TIMEOUT_SECONDS = 10  # of tests.workers.FLAGS
PORT = 2222


@pytest.fixture
def network() -> Iterator[Network]:
    if not can_make_networks():
        skip_or_fail(WHY_NOT)
    with Network() as made:
        yield made


@pytest.fixture
def make_cluster(tmp_path: Path) -> Iterator[Callable[[list[str]], Cluster]]:
    with making_clusters(tmp_path, *FLAGS) as make:
        yield lambda addresses: make(2, addresses=addresses)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The COMMIT of an undisturbed run of one process with two replicas."""
    return commit_of_one_process(tmp_path_factory.mktemp("alone"), *FLAGS)


BREAKS: dict[str, tuple[Callable[[Network], None], Callable[[Network], None]]] = {
    "silent both ways": (Network.cut, Network.mend),
    "what the chief sends is lost": (lambda network: network.cut(senders=[0]), Network.mend),
    "link down": (Network.unplug, Network.plug_in),
}


@pytest.mark.parametrize("name", BREAKS)
def test_both_leave_after_the_peer_timeout_and_go_on_when_the_network_is_back(
    name: str, network: Network, make_cluster: Any, alone: dict[str, Any]
) -> None:
    cluster = make_cluster([f"{host}:{PORT}" for host in network.hosts])
    processes = [cluster.start(index, prefix=network.prefix(index)) for index in (0, 1)]
    processes[0].until("checkpoint.saved")
    break_it, mend_it = BREAKS[name]
    break_it(network)
    broken = time.monotonic()
    assert [process.wait(60) for process in processes] == [76, 76], processes[0].error + processes[1].error
    assert 3 < time.monotonic() - broken < PEER_TIMEOUT_SECONDS + 10
    for process in processes:
        assert process.error.startswith("mnist-job: error 76: cluster: ") and process.error.count("\n") == 0
        assert f"worker {1 - process.index} is gone" in process.error
    mend_it(network)
    again = [cluster.start(index, prefix=network.prefix(index)) for index in (0, 1)]
    assert [process.wait() for process in again] == [0, 0], again[0].error + again[1].error
    assert digests(cluster.commit) == digests(alone)


def test_names_that_resolve_late(network: Network, make_cluster: Any, tmp_path: Path, alone: dict[str, Any]) -> None:
    names = ("worker-0.test", "worker-1.test")
    cluster = make_cluster([f"{name}:{PORT}" for name in names])
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    processes = [cluster.start(index, prefix=(*network.prefix(index), *with_hosts_file(hosts))) for index in (0, 1)]
    time.sleep(15)
    assert all(process.popen.poll() is None for process in processes)
    with hosts.open("a") as file:  # in place: the workers have this very file mounted
        file.writelines(f"{host} {name}\n" for host, name in zip(network.hosts, names, strict=True))
    assert [process.wait() for process in processes] == [0, 0], processes[0].error + processes[1].error
    assert digests(cluster.commit) == digests(alone)


def test_foreign_listener_in_the_place_of_a_worker_ends_the_attempt_and_nothing_else(
    make_cluster: Any, alone: dict[str, Any]
) -> None:
    """It accepts and says nothing, so the chief takes it for worker 1."""
    cluster = make_cluster([f"127.0.0.1:{port}" for port in free_ports(2)])
    with socket.create_server(("127.0.0.1", int(cluster.addresses[1].partition(":")[2]))):
        chief = cluster.start(0)
        assert chief.wait(90) == 76, chief.stderr[-2000:]
    assert "worker 1" in chief.error and chief.error.count("\n") == 0
    again = cluster.start_all()
    assert [process.wait() for process in again] == [0, 0], again[0].error
    assert digests(cluster.commit) == digests(alone)


def test_sigterm_while_the_network_is_cut_ends_in_time(
    network: Network, make_cluster: Any, alone: dict[str, Any]
) -> None:
    """The vote cannot reach the other: both have to leave all the same."""
    cluster = make_cluster([f"{host}:{PORT}" for host in network.hosts])
    processes = [cluster.start(index, prefix=network.prefix(index)) for index in (0, 1)]
    processes[0].until("checkpoint.saved")
    network.cut()
    processes[1].kill(signal.SIGTERM)
    broken = time.monotonic()
    codes = [process.wait(60) for process in processes]
    assert set(codes) <= {75, 76} and codes[0] == 76, codes
    assert time.monotonic() - broken < PEER_TIMEOUT_SECONDS + 10
    network.mend()
    again = [cluster.start(index, prefix=network.prefix(index)) for index in (0, 1)]
    assert [process.wait() for process in again] == [0, 0], again[0].error
    assert digests(cluster.commit) == digests(alone)
