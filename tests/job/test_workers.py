"""Whole runs of several workers, as processes: equal bits to one process, and every fault ends as it should."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import REPOSITORY, RunJob, job_environment, run_job_in, skip_or_fail
from tests.ports import free_ports
from tests.workers import (
    FLAGS,
    Cluster,
    checkpoint_steps,
    commit_of_one_process,
    digests,
    making_clusters,
    read_commit,
    run_alone,
    tf_config,
)

pytestmark = [pytest.mark.tf, pytest.mark.timeout(400)]

LONG = ("--train.epochs=15", "--checkpoint.interval_seconds=0.2")
"""Some seconds of steps, which a fault can fall into."""


@pytest.fixture
def clusters(tmp_path: Path) -> Iterator[Any]:
    """Makes clusters below `tmp_path`; ends them."""
    with making_clusters(tmp_path) as make:
        yield make


@pytest.fixture(scope="session")
def long_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The COMMIT of an undisturbed run of one process with two replicas."""
    return commit_of_one_process(tmp_path_factory.mktemp("alone"), *LONG)


def scrape(port: int) -> dict[str, float]:
    """Sum of each series over its labels; empty when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    except OSError:
        return {}
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def test_two_workers_are_two_replicas_bit_for_bit_and_are_counted_once(
    clusters: Any, long_alone: dict[str, Any]
) -> None:
    cluster = clusters(2, *LONG)
    ports = free_ports(2)
    chief, other = (cluster.start(index, f"--observe.metrics_port={ports[index]}") for index in (0, 1))
    chief.until("checkpoint.saved")
    series = [scrape(port) for port in ports]
    assert [chief.wait(), other.wait()] == [0, 0], chief.error + other.error
    assert digests(cluster.commit) == digests(long_alone)
    assert cluster.commit["inputs"]["replicas"] == 2 and cluster.commit["bit_identical"] is True
    assert cluster.commit["lineage"]["devices"] == long_alone["lineage"]["devices"]

    # W15: what is counted is on the chief alone; the other tells about its own process.
    assert series[0]["mnist_train_steps_total"] > 0
    counted_by_each = {"mnist_train_store_requests_total", "mnist_train_store_retries_total"}
    counted_by_each |= {"mnist_train_warnings_total", "process_cpu_seconds_total"}
    totals = {name for name in series[1] if name.endswith("_total")}
    assert totals <= counted_by_each
    assert {"mnist_train_info", "mnist_train_phase"} <= series[1].keys()

    assert {event["worker"] for event in chief.events} == {0} and {event["worker"] for event in other.events} == {1}
    assert chief.event("train.start")["workers"] == 2 and chief.event("train.start")["replicas"] == 2
    assert other.event("run.end")["outcome"] == "assisted"
    assert cluster.commit["goodput"]["seconds"]["wait_for_workers"] >= 0
    stored = {path.name for path in (cluster.folder / "out" / "runs" / "r" / "attempts").iterdir()}
    assert stored == {cluster.commit["attempt"]}, "another worker than the chief wrote to the store"


def test_sigterm_on_one_worker_stops_all_at_one_step_and_one_process_goes_on_to_the_same_bits(
    clusters: Any, long_alone: dict[str, Any]
) -> None:
    cluster = clusters(2, *LONG)
    chief, other = cluster.start_all()
    chief.until("checkpoint.saved")
    other.kill(signal.SIGTERM)
    signalled = time.monotonic()
    assert [chief.wait(60), other.wait(60)] == [75, 75], chief.error + other.error
    assert time.monotonic() - signalled < 30
    steps = [process.event("run.interrupted")["step"] for process in (chief, other)]
    assert steps[0] == steps[1] == checkpoint_steps(cluster.folder)[-1]
    assert chief.event("run.interrupted")["reason"].startswith("SIGTERM of worker 1 received")
    alone = run_alone(cluster.folder, *LONG, "--cluster.cpu_replicas=2")
    assert alone.event("checkpoint.restored")["step"] == steps[0]
    assert digests(cluster.commit) == digests(long_alone)
    assert cluster.commit["bit_identical"] is True and cluster.commit["counters"]["interruptions"] == 1


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_killed_worker_is_noticed_at_once_and_the_run_goes_on(
    victim: int, clusters: Any, long_alone: dict[str, Any]
) -> None:
    cluster = clusters(2, *LONG)
    processes = cluster.start_all()
    processes[0].until("checkpoint.saved")
    processes[victim].kill()
    killed = time.monotonic()
    other = processes[1 - victim]
    assert other.wait(60) == 76
    assert time.monotonic() - killed < 10, "at once, and not after cluster.peer_timeout_seconds"
    assert f"cluster: worker {victim} is gone" in other.error and other.error.count("\n") == 0
    again = cluster.start_all()
    assert [process.wait() for process in again] == [0, 0]
    assert digests(cluster.commit) == digests(long_alone)
    late, started = cluster.start(1), time.monotonic()
    assert late.wait(60) == 0, "nothing is left to do"
    assert time.monotonic() - started < 30 and late.event("run.end")["phases"].get("wait_for_workers") is None
    chief = cluster.start(0)
    assert chief.wait(60) == 0 and chief.event("run.end")["outcome"] == "already_committed", chief.stderr[-2000:]


@pytest.mark.parametrize(
    ("flag", "what"),
    [
        ("--train.learning_rate=0.2", "train.learning_rate was 0.1, is 0.2"),
        pytest.param("--data.train_examples=900", "train_examples", marks=pytest.mark.full),
    ],
)
def test_worker_with_other_settings_is_named_by_all_before_step_1(flag: str, what: str, clusters: Any) -> None:
    cluster = clusters(2)
    chief, other = cluster.start(0), cluster.start(1, flag)
    assert [chief.wait(), other.wait()] == [64, 64], chief.error + other.error
    for process in (chief, other):
        assert "cluster: worker 1 has other settings or data than worker 0" in process.error and what in process.error
        assert process.error.count("\n") == 0
    names = {path.name for path in (cluster.folder / "out").rglob("*") if path.is_file()}
    assert names - {"000000.jsonl", "metrics.prom"} == {"run.json", "attempt.json"}


@pytest.mark.full
@pytest.mark.parametrize(
    ("environ", "more", "message"),
    [
        (
            {},
            ("--cluster.peer_timeout_seconds=3600",),
            "worker 1 has peer_timeout 3600.0, worker 0 has 10.0; give all the same",
        ),
        ({}, ("--cluster.cpu_replicas=2",), "the workers have different numbers of replicas"),
        ({}, ("--store.uri=file:./other",), "is not that of worker 0, which has written"),
        ({"IMAGE": "other:1"}, (), "worker 1 has image 'other:1', worker 0 has ''; give all the same image"),
        ({}, ("--run.id=other",), "worker 1 has run 'other', worker 0 has 'r'; give all the same run.id"),
    ],
    ids=["timeout", "replicas", "store", "image", "run"],
)
def test_worker_that_is_set_up_otherwise_is_refused(
    environ: dict[str, str], more: tuple[str, ...], message: str, clusters: Any
) -> None:
    cluster = clusters(2)
    chief, other = cluster.start(0), cluster.start(1, *more, **environ)
    codes = [chief.wait(), other.wait()]
    assert codes == [64, 64] or (codes == [76, 64] and "has written" in message), chief.error + other.error
    assert message in other.error and (codes[0] == 76 or message in chief.error)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--train.compile=xla", "train.compile: xla works with one replica"),
        (
            "--train.global_batch_size=33",
            "train.global_batch_size: must be a multiple of cluster.workers (2), received 33",
        ),
    ],
)
def test_what_no_number_of_devices_can_mend_is_known_at_once(more: str, message: str, run_job: RunJob) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    done = run_job("run", "--cluster.workers=2", more, env={"TF_CONFIG": tf_config(addresses, 0)})
    assert done.code == 64 and message in done.error


def test_random_seed_without_run_id_is_refused(run_job: RunJob) -> None:
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    done = run_job("run", "--cluster.workers=2", "--run.seed=random", env={"TF_CONFIG": tf_config(addresses, 0)})
    assert done.code == 64
    assert "run.seed: random needs a run.id with several workers" in done.error


def test_worker_that_never_comes_ends_the_wait_in_time(clusters: Any) -> None:
    cluster = clusters(2, "--cluster.start_timeout_seconds=2")
    chief = cluster.start(0)
    assert chief.wait(60) == 76
    assert f"worker 1 ({cluster.addresses[1]}) did not answer within 2 s" in chief.error
    assert chief.event("run.end")["phases"]["wait_for_workers"] < 10


def test_tf_config_that_does_not_fit_is_refused_before_anything(clusters: Any) -> None:
    cluster = clusters(2)
    process = cluster.start(0, TF_CONFIG="{}")
    assert process.wait(30) == 64
    assert process.error.startswith("mnist-job: error 64: TF_CONFIG: must be") and not (cluster.folder / "out").exists()


def test_port_in_use_is_named(clusters: Any) -> None:
    cluster = clusters(2)
    with socket.create_server(("127.0.0.1", int(cluster.addresses[1].partition(":")[2]))):
        process = cluster.start(1)
        assert process.wait(60) == 69
    assert "of this worker (TF_CONFIG) cannot be used" in process.error


class TestInTheFullRun:
    """Each takes the time of several trainings."""

    pytestmark = pytest.mark.full

    def test_four_placements_one_result(self, clusters: Any, tmp_path: Path) -> None:
        """Stopped on 4 workers, killed on 2, finished in one process: the bits of the undisturbed one."""
        undisturbed = tmp_path / "undisturbed"
        undisturbed.mkdir()
        run_alone(undisturbed, *LONG, "--cluster.cpu_replicas=4")
        four = clusters(4, *LONG)
        processes = four.start_all()
        processes[0].until("checkpoint.saved")
        processes[3].kill(signal.SIGTERM)
        assert [process.wait() for process in processes] == [75] * 4
        two = clusters(2, *LONG, "--cluster.cpu_replicas=2")
        processes = two.start_all()
        restored = processes[0].until("checkpoint.restored")["step"]
        processes[0].until("checkpoint.saved", is_it=lambda event: event["step"] > restored)
        processes[1].kill()
        assert [process.wait() for process in processes] == [76, -signal.SIGKILL]
        run_alone(two.folder, *LONG, "--cluster.cpu_replicas=4")
        assert digests(two.commit) == digests(read_commit(undisturbed))
        assert two.commit["bit_identical"] is True
        assert len(two.commit["chain"]) == 3

    @pytest.mark.parametrize("placement", [(8, 1)], ids=str)
    def test_placement_changes_no_bit(self, placement: tuple[int, int], clusters: Any, tmp_path: Path) -> None:
        workers, replicas = placement
        batch = "--train.global_batch_size=48"
        cluster = clusters(workers, batch, f"--cluster.cpu_replicas={replicas}")
        assert [process.wait(200) for process in cluster.start_all()] == [0] * workers
        run_alone(tmp_path, batch, f"--cluster.cpu_replicas={workers * replicas}")
        assert digests(cluster.commit) == digests(read_commit(tmp_path))

    def test_dropout_adam_and_a_last_batch_that_leaves_a_worker_empty(self, clusters: Any, tmp_path: Path) -> None:
        """The last batch has 22 of 64 examples: worker 1, whose share is the second half, gets none."""
        flags = (
            *("--model.dropout=0.2", "--train.optimizer=adam", "--train.learning_rate=0.001"),
            *("--data.train_examples=150", "--train.global_batch_size=64"),
        )
        cluster = clusters(2, *flags)
        assert [process.wait(200) for process in cluster.start_all()] == [0, 0]
        run_alone(tmp_path, *flags, "--cluster.cpu_replicas=2")
        assert digests(cluster.commit) == digests(read_commit(tmp_path))

    def test_own_model_with_batch_normalization(self, clusters: Any, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(OWN_MODEL)
        path = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
        cluster = clusters(2, "--model.build=own:build")
        processes = [cluster.start(index, PYTHONPATH=path) for index in (0, 1)]
        assert [process.wait(200) for process in processes] == [0, 0], processes[0].stderr[-3000:]
        alone = clusters(1, "--model.build=own:build", "--cluster.cpu_replicas=2", name="alone")
        process = alone.start(0, TF_CONFIG="", PYTHONPATH=path)
        assert process.wait(200) == 0, process.stderr[-3000:]
        assert digests(cluster.commit) == digests(alone.commit)

    @pytest.mark.parametrize(
        ("old", "new"),
        [('activation="relu"', "activation=os.environ['ACT']"), ("Dense(32", "Dense(int(os.environ['ACT'])")],
    )
    def test_model_that_differs_between_workers_is_refused(
        self, old: str, new: str, clusters: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "own.py").write_text("import os\n" + OWN_MODEL.replace(old, new))
        path = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
        cluster = clusters(2, "--model.build=own:build")
        values = ("32", "16") if "int" in new else ("relu", "gelu")
        processes = [cluster.start(index, PYTHONPATH=path, ACT=values[index]) for index in (0, 1)]
        codes = [process.wait(200) for process in processes]
        assert codes == [64, 64], processes[0].stderr[-3000:]
        for process in processes:
            assert (
                "makes another model on worker 1 than on worker 0" in process.error and process.error.count("\n") == 0
            )

    def test_chief_that_waits_leaves_when_another_commits(self, clusters: Any) -> None:
        cluster = clusters(2)
        chief = cluster.start(0)
        chief.until("cluster.waiting")
        run_alone(cluster.folder, "--cluster.cpu_replicas=2")
        assert chief.wait(60) == 0 and chief.event("run.end")["outcome"] == "already_committed"

    def test_variable_that_each_worker_keeps_for_itself_is_refused(self, clusters: Any, tmp_path: Path) -> None:
        (tmp_path / "own.py").write_text(OWN_MODEL.replace("[0]", "[1]"))
        path = os.pathsep.join([str(REPOSITORY), str(tmp_path)])
        cluster = clusters(2, "--model.build=own:build")
        processes = [cluster.start(index, PYTHONPATH=path) for index in (0, 1)]
        assert [process.wait(200) for process in processes] == [64, 64], processes[0].stderr[-3000:]
        assert "has synchronization ON_READ" in processes[0].error

    def test_workers_that_are_not_the_chief_need_no_right_to_write(self) -> None:
        """The other worker is a user who may only read the store."""
        if os.getuid() != 0:
            skip_or_fail("needs root, to start a worker as another user")
        with tempfile.TemporaryDirectory() as name:  # not below pytest's own folder, which nobody else may enter
            folder = Path(name)
            folder.chmod(0o755)
            cluster = Cluster(folder=folder, count=2)
            other_user = ("setpriv", "--reuid=65532", "--regid=65532", "--clear-groups")
            try:
                chief, other = cluster.start(0), cluster.start(1, prefix=other_user)
                assert [chief.wait(), other.wait()] == [0, 0], other.stderr[-2000:]
            finally:
                cluster.end()

    def test_loss_that_is_not_finite_is_named_by_all_with_the_same_step(self, clusters: Any) -> None:
        cluster = clusters(2, "--model.activation=relu", "--train.learning_rate=1e6")
        processes = cluster.start_all()
        assert [process.wait() for process in processes] == [70, 70]
        assert processes[0].error == processes[1].error and "loss is not finite in epoch 1" in processes[0].error

    def test_stopped_worker_is_lost_after_the_peer_timeout_and_leaves_when_it_wakes(self, clusters: Any) -> None:
        cluster = clusters(2, *LONG)
        chief, other = cluster.start_all()
        chief.until("checkpoint.saved")
        other.kill(signal.SIGSTOP)
        stopped = time.monotonic()
        assert chief.wait(40) == 76
        assert 4 < time.monotonic() - stopped < 25
        other.kill(signal.SIGCONT)
        assert other.wait(40) == 76

    def test_second_process_of_one_index_costs_an_attempt_and_nothing_else(
        self, clusters: Any, long_alone: dict[str, Any]
    ) -> None:
        cluster = clusters(2, *LONG)
        chief, other = cluster.start_all()
        chief.until("checkpoint.saved")
        ports = list(cluster.addresses)
        cluster.addresses = [ports[0], f"127.0.0.1:{free_ports(1)[0]}"]
        second = cluster.start(1)
        cluster.addresses = ports
        codes = [process.wait(120) for process in (chief, other, second)]
        assert set(codes) <= {0, 76}, codes
        if codes[0]:
            again = cluster.start_all()
            assert [process.wait() for process in again] == [0, 0]
        assert digests(cluster.commit) == digests(long_alone)

    def test_unchanged_inputs_are_skipped_by_all(self, clusters: Any) -> None:
        flags = ("--promotion.enabled=true", "--run.skip_if_unchanged=true")
        cluster = clusters(2, *flags)
        assert [process.wait() for process in cluster.start_all()] == [0, 0]
        again = cluster.start_all("--run.id=second")
        assert [process.wait() for process in again] == [0, 0]
        assert [process.event("run.end")["outcome"] for process in again] == ["skipped", "assisted"]

    def test_reproduced_in_one_process(self, clusters: Any) -> None:
        cluster = clusters(2)
        assert [process.wait() for process in cluster.start_all()] == [0, 0]
        done = run_job_in(cluster.folder)("reproduce", "r", env={"TF_CONFIG": tf_config(cluster.addresses, 0)})
        assert done.code == 0, done.stderr
        assert "state digest    " in done.stdout

    def test_clock_that_is_an_hour_wrong_changes_nothing(self, clusters: Any, tmp_path: Path) -> None:
        wrong = tmp_path / "wrong"
        wrong.mkdir()
        (wrong / "sitecustomize.py").write_text("import time\n_now = time.time\ntime.time = lambda: _now() + 3600\n")
        cluster = clusters(2)
        chief = cluster.start(0)
        other = cluster.start(1, PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(wrong)]))
        assert [chief.wait(), other.wait()] == [0, 0], other.error
        run_alone(tmp_path, "--cluster.cpu_replicas=2")
        assert digests(cluster.commit) == digests(read_commit(tmp_path))

    def test_mixed_cpus_are_warned_of_and_recorded(self, clusters: Any) -> None:
        cluster = clusters(2)
        chief, other = cluster.start(0), cluster.start(1, ONEDNN_MAX_CPU_ISA="AVX2")
        assert [chief.wait(), other.wait()] == [0, 0], chief.error
        assert chief.event("cluster.mixed")["workers"] == [1]
        assert cluster.commit["bit_identical"] is False

    def test_store_that_one_worker_cannot_reach(self, clusters: Any) -> None:
        cluster = clusters(2, "--cluster.start_timeout_seconds=20", "--store.deadline_seconds=2")
        chief = cluster.start(0)
        other = cluster.start(
            1, "--store.uri=s3://bucket/x", "--store.endpoint=http://127.0.0.1:9", AWS_ACCESS_KEY_ID="a"
        )
        assert other.wait(60) in (69, 77)
        assert chief.wait(60) == 76
        assert "worker 1" in chief.error

    def test_sigterm_while_tensorflow_holds_the_handler_stops_all(self, clusters: Any, tmp_path: Path) -> None:
        """It comes between the making of the strategy and the line that puts our handler back: TensorFlow alone sees it."""
        gap = tmp_path / "gap"
        gap.mkdir()
        (gap / "sitecustomize.py").write_text(GAP)
        cluster = clusters(2, *LONG)
        chief = cluster.start(0)
        other = cluster.start(1, PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(gap)]))
        assert [chief.wait(), other.wait()] == [75, 75], chief.error + other.error
        assert chief.event("run.interrupted")["step"] == checkpoint_steps(cluster.folder)[-1]

    def test_hung_worker_ends_all_with_74(self, clusters: Any, tmp_path: Path) -> None:
        """A worker whose step hangs while its process lives: only the stall time-out of each can end that."""
        hang = tmp_path / "hang"
        hang.mkdir()
        (hang / "sitecustomize.py").write_text(HANG)
        cluster = clusters(2, *LONG, "--observe.stall_timeout_seconds=8")
        chief = cluster.start(0)
        other = cluster.start(1, PYTHONPATH=os.pathsep.join([str(REPOSITORY), str(hang)]))
        assert [chief.wait(), other.wait()] == [74, 74], chief.error + other.error

    def test_scripts_workers_restarts_what_was_lost(self, tmp_path: Path, long_alone: dict[str, Any]) -> None:
        settings = (*FLAGS, *LONG, f"--store.uri=file:{tmp_path}/out")
        log = tmp_path / "log"
        with open(log, "w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "scripts.local_workers", "2", "--restarts", "2", "--", *settings],
                cwd=REPOSITORY,
                env=job_environment(),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + 90
        while "checkpoint.saved" not in log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        children = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True).stdout
        os.kill(int(children.split()[-1]), signal.SIGKILL)
        assert process.wait(120) == 0, log.read_text()[-3000:]
        assert "[0] ended with 76" in log.read_text()
        assert digests(read_commit(tmp_path)) == digests(long_alone)


OWN_MODEL = """
import keras


class Counting(keras.layers.Layer):
    def build(self, shape):
        how = ["auto", "on_read"][0]
        self.count = keras.Variable(0.0, trainable=False, synchronization=how, aggregation="mean", name="count")

    def call(self, inputs):
        return inputs


def build(input_shape, num_classes):
    return keras.Sequential([
        keras.layers.Input(input_shape),
        keras.layers.Flatten(),
        keras.layers.Dense(32, activation="relu"),
        keras.layers.BatchNormalization(),
        Counting(),
        keras.layers.Dense(num_classes, activation="softmax"),
    ])
"""

HANG = """
import threading, time
def watch():
    import sys
    while "job.training.pipeline" not in sys.modules:
        time.sleep(0.05)
    import job.training.pipeline as pipeline
    original = pipeline.chunk_rows
    def chunk_rows(**where):
        for number, chunk in enumerate(original(**where)):
            if number == 5:
                time.sleep(3600)
            yield chunk
    pipeline.chunk_rows = chunk_rows
threading.Thread(target=watch, daemon=True).start()
"""

GAP = """
import os, signal
original, count = signal.signal, 0
def put(number, handler):
    global count
    count += number == signal.SIGTERM
    if number == signal.SIGTERM and count == 2:  # the first call installs our handler at the start of the process
        os.kill(os.getpid(), signal.SIGTERM)
    return original(number, handler)
signal.signal = put
"""
