"""TF_CONFIG, the wait for the others, and whose rows are whose; no TensorFlow but in the last tests."""

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.errors import ConfigError, PeerLostError, UnavailableError
from job.signals import StopRequested, StopSignal
from job.training.devices import name_devices
from job.training.pipeline import chunk_rows
from job.training.workers import ALONE, Workers, _name_lost, wait_for_workers, workers_from_environment
from tests.conftest import REPOSITORY, job_environment
from tests.ports import free_ports
from tests.workers import tf_config

TWO = ("a:1", "b:2")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


class TestTfConfig:
    def test_names_the_workers_and_this_one(self) -> None:
        workers = workers_from_environment({"TF_CONFIG": tf_config(TWO, 1)}, count=2)
        assert workers == Workers(index=1, addresses=TWO)
        assert workers.are_several and not workers.is_chief

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{}",
            "no JSON",
            tf_config(["a:1"], 0),
            '{"cluster": {"chief": ["h:1"]}, "task": {"type": "chief", "index": 0}}',
        ],
    )
    def test_one_worker_needs_none(self, text: str) -> None:
        assert workers_from_environment({}, count=1) == workers_from_environment({"TF_CONFIG": text}, count=1) == ALONE

    @pytest.mark.parametrize(
        ("text", "count", "message"),
        [
            (
                "",
                2,
                "must name the 2 workers of cluster.workers, and is not set; the chart sets it, and here scripts/workers",
            ),
            ("{", 2, "Invalid JSON"),
            ("[]", 2, "received '[]'"),
            (tf_config(TWO, 0), 3, "cluster.workers: must equal the 2 workers of TF_CONFIG, received 3"),
            (tf_config(TWO, 0), 1, "cluster.workers: must equal the 2 workers of TF_CONFIG, received 1"),
            (tf_config(TWO, 2), 2, "task.index must be below 2"),
            (tf_config(TWO, -1), 2, "task.index"),
            (tf_config(("a:1", "a:1"), 0), 2, "names an address twice"),
            (tf_config(("a:1", "a:0"), 0), 2, "the port must be 1 to 65535, received 'a:0'"),
            (tf_config(("a:1", "a:65536"), 0), 2, "the port must be 1 to 65535"),
            (tf_config(("a:1", "a"), 0), 2, "cluster.worker.1"),
            (tf_config(("[::1]:1", "[::1]:2"), 0), 2, "cluster.worker.0"),
            (tf_config(("a:1", "grpc://a:2"), 0), 2, "cluster.worker.1"),
            ('{"cluster": {"worker": "ab"}, "task": {"type": "worker", "index": 0}}', 2, "cluster.worker"),
            ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "chief", "index": 0}}', 2, "task.type"),
            ('{"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": "0"}}', 2, "task.index"),
            ('{"cluster": {"worker": ["a:1", "b:2"], "ps": ["c:3"]}, "task": {"type": "worker", "index": 0}}', 2, "ps"),
            ('{"cluster": {"worker": ["a:1", "b:2"]}}', 2, "task"),
            ("[" * 100_000, 2, "TF_CONFIG"),
        ],
    )
    def test_mistake_is_named_in_one_line(self, text: str, count: int, message: str) -> None:
        with pytest.raises(ConfigError) as raised:
            workers_from_environment({"TF_CONFIG": text}, count=count)
        assert message in str(raised.value)
        assert "\n" not in str(raised.value) and len(str(raised.value)) < 600

    @settings(max_examples=300)
    @given(
        cluster=json_values
        | st.fixed_dictionaries({"worker": json_values | st.lists(st.text(max_size=12), max_size=4)}),
        task=json_values | st.fixed_dictionaries({"type": st.just("worker"), "index": json_values}),
        count=st.integers(1, 4),
    )
    def test_anything_else_is_refused_or_right(self, cluster: Any, task: Any, count: int) -> None:
        text = json.dumps({"cluster": cluster, "task": task})
        try:
            workers = workers_from_environment({"TF_CONFIG": text}, count=count)
        except ConfigError:
            return
        assert workers == ALONE if count == 1 else workers.count == count and 0 <= workers.index < count

    @settings(max_examples=200)
    @given(text=st.text(max_size=60), count=st.integers(2, 3))
    def test_no_text_is_taken_for_workers(self, text: str, count: int) -> None:
        with pytest.raises(ConfigError):
            workers_from_environment({"TF_CONFIG": text}, count=count)


def local(index: int, count: int = 2) -> Workers:
    return Workers(index=index, addresses=tuple(f"127.0.0.1:{port}" for port in free_ports(count)))


def wait(workers: Workers, *, seconds: float = 5.0, look: Any = lambda: None) -> None:
    wait_for_workers(workers, timeout_seconds=seconds, look=look)


class TestWait:
    def test_chief_goes_on_when_all_doors_are_open_and_a_worker_when_the_chief_answers(self) -> None:
        chief = local(0, count=3)
        ended: list[int] = []

        def be_worker(index: int) -> None:
            wait(Workers(index=index, addresses=chief.addresses))
            ended.append(index)

        threads = [threading.Thread(target=be_worker, args=(index,)) for index in (1, 2)]
        threads[0].start()
        threading.Timer(0.5, threads[1].start).start()
        started = time.monotonic()
        wait(chief)
        assert time.monotonic() - started > 0.5 and ended == []
        with socket.create_server(("127.0.0.1", int(chief.addresses[0].partition(":")[2]))):
            for thread in threads:
                thread.join(5)
        assert sorted(ended) == [1, 2]

    @pytest.mark.parametrize("index", [0, 1])
    def test_one_that_never_comes_is_named_when_the_time_is_over(self, index: int) -> None:
        workers, started = local(index), time.monotonic()
        with pytest.raises(PeerLostError) as raised:
            wait(workers, seconds=0.6)
        assert 0.6 <= time.monotonic() - started < 5
        other = 1 - index
        assert f"worker {other} ({workers.addresses[other]}) did not answer within 0.6 s" in str(raised.value)

    @pytest.mark.parametrize("name", ["no-such-host.invalid", "x" * 70, "-", "a..b"])
    def test_a_name_that_does_not_resolve_is_waited_for_too(self, name: str) -> None:
        workers = Workers(index=0, addresses=(local(0).addresses[0], f"{name}:1234"))
        with pytest.raises(PeerLostError, match=r"worker 1 .*did not answer within 0\.5 s"):
            wait(workers, seconds=0.5)

    def test_many_missing_workers_make_one_short_line(self) -> None:
        with pytest.raises(PeerLostError, match=r"worker 4 .* and 3 more did not answer"):
            wait(local(0, count=8), seconds=0.3)

    @pytest.mark.parametrize("index", [0, 1])
    def test_own_port_that_is_taken_is_known_at_once(self, index: int) -> None:
        workers = local(index)
        port = int(workers.addresses[index].partition(":")[2])
        with socket.create_server(("", port)), pytest.raises(UnavailableError, match=f"port {port} of this worker"):
            wait(workers)

    def test_look_may_end_the_wait(self) -> None:
        def look() -> None:
            raise LookupError

        with pytest.raises(LookupError):
            wait(local(1), look=look)

    def test_sigterm_ends_the_wait_at_once(self) -> None:
        stop, before = StopSignal(), (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
        stop.install()
        try:
            timer = threading.Timer(0.3, signal.raise_signal, (signal.SIGTERM,))
            timer.start()
            started = time.monotonic()
            with pytest.raises(StopRequested):
                wait(local(1), seconds=20)
            assert time.monotonic() - started < 10
        finally:
            for number, handler in zip((signal.SIGTERM, signal.SIGINT), before, strict=True):
                signal.signal(number, handler)


@settings(max_examples=150)
@given(st.data())
def test_rows_of_all_workers_are_the_global_batch_in_its_order(data: st.DataObject) -> None:
    num_workers = data.draw(st.integers(1, 6))
    batch = num_workers * data.draw(st.integers(1, 5))
    where = {
        "num_examples": data.draw(st.integers(batch, 120)),
        "global_batch_size": batch,
        "steps_per_chunk": data.draw(st.integers(1, 5)),
        "seed": data.draw(st.integers(0, 9)),
        "start_step": data.draw(st.integers(0, 20)),
        "stop_step": data.draw(st.integers(0, 30)),
    }
    for chunk in chunk_rows(**where):
        shares = [chunk.share(worker, num_workers=num_workers) for worker in range(num_workers)]
        assert np.array_equal(np.concatenate([rows for rows, _ in shares], 1), chunk.rows)
        assert np.array_equal(np.concatenate([weights for _, weights in shares], 1), chunk.weights)
        for step in range(chunk.num_steps):
            real = [set(rows[step][weights[step] > 0].tolist()) for rows, weights in shares]
            assert sum(map(len, real)) == len(set().union(*real)), "two workers have the same example"


@pytest.mark.parametrize(
    ("index", "text", "expected"),
    [
        (1, "Deadline Exceeded RPC: /tensorflow.CoordinationService/Heartbeat", "worker 0"),
        (0, "/job:worker/replica:0/task:1 stopped sending heartbeats", "worker 1"),
        (1, "from /job:worker/replica:0/task:1: recvmsg:Connection reset by peer", "another worker"),
        (2, "/job:worker/replica:0/task:1: /tensorflow.CoordinationService/Heartbeat", "worker 1"),
        (0, "/job:worker/task:1 and /job:worker/task:2", "another worker"),
    ],
)
def test_lost_worker_is_named_where_tensorflow_tells(index: int, text: str, expected: str) -> None:
    assert _name_lost(text, Workers(index=index, addresses=("a:1", "b:1", "c:1"))) == expected


class TestDeviceNames:
    def test_cpu_replicas_are_named_alike_wherever_they_are_placed(self) -> None:
        def on(task: int, count: int) -> tuple[str, ...]:
            return tuple(f"/job:worker/replica:0/task:{task}/device:CPU:{index}" for index in range(count))

        alone = tuple(f"/job:localhost/replica:0/task:0/device:CPU:{index}" for index in range(4))
        assert name_devices(alone, num_workers=1) == alone
        assert name_devices(on(1, 2), num_workers=2) == name_devices(on(3, 1), num_workers=4) == alone

    def test_gpus_are_named_with_their_place(self) -> None:
        names = name_devices(("/job:worker/replica:0/task:1/device:GPU:0",), num_workers=2)
        assert names == tuple(f"/job:worker/replica:0/task:{task}/device:GPU:0" for task in (0, 1))
        alone = ("/job:localhost/replica:0/task:0/device:GPU:0",)
        assert name_devices(alone, num_workers=1) == alone


SCRIPT = """
import os, signal, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf
from job.training import devices
from job.training.workers import was_stopped_while_joining

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append("handler"))
strategy = tf.distribute.MultiWorkerMirroredStrategy()
print("devices", len(strategy.extended.worker_devices))
assert not was_stopped_while_joining()
if sys.argv[1] == "1":
    os.kill(os.getpid(), signal.SIGTERM)
deadline = time.monotonic() + 10
while not was_stopped_while_joining() and time.monotonic() < deadline:
    time.sleep(0.05)
print("told", told, "asked", was_stopped_while_joining(), flush=True)
if sys.argv[1] == "0":  # the service is here: the other has to ask it first
    time.sleep(5)
os._exit(0)
"""


@pytest.mark.tf
def test_each_work_around_is_still_needed_and_the_private_names_are_there() -> None:
    """When this fails, TensorFlow has changed: a work-around in workers.py or devices.py can go, or needs another name."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(index)],
            env=job_environment({"TF_CONFIG": tf_config(addresses, index), "PYTHONPATH": str(REPOSITORY)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in (0, 1)
    ]
    outputs = [process.communicate(timeout=90) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    for stdout, _ in outputs:
        assert "devices 1" in stdout, "the strategy takes all CPU devices by itself: devices._cpu_devices can go"
        assert "told []" in stdout, "TensorFlow leaves our SIGTERM handler: devices._join need not put it back"
        assert "asked True" in stdout, "nobody is told of a SIGTERM while the strategy is made"


@pytest.mark.tf
def test_private_names_exist() -> None:
    code = (
        "from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2 as c\n"
        "from tensorflow.python.eager import context\n"
        "from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended as e\n"
        "c.CoordinatedJob(name='worker', num_tasks=2)\n"
        "here = context.context()\n"
        "here.configure_coordination_service(service_type='standalone', service_leader='/job:worker/replica:0/task:0',\n"
        "    cluster_register_timeout_in_ms=1, heartbeat_timeout_in_ms=1, coordinated_jobs=[])\n"
        "here.coordination_service.cluster_register_with_barrier = True\n"
        "print(callable(here.get_config_key_value), callable(e._initialize_local_devices))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=job_environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "True True\n", done.stderr
