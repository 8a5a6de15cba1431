"""The devices of this process and the tf.distribute strategy over them.

Owns thread counts, logical devices and the choice of replicas. Has to run before TensorFlow touches a device.
"""

import contextlib
import ctypes
import faulthandler
import math
import os
import platform
import re
import resource
import signal
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from job.config import ClusterSection, TrainSection
from job.errors import ConfigError, NotFoundError
from job.training.workers import Workers, peer_errors

JOIN_SECONDS = 30.0
"""How long TensorFlow may wait for workers that were there a moment ago; nothing else of this process runs in that time."""

_NO_LIMIT_BYTES = 2**60
"""cgroup v1 writes a huge number where there is no limit."""

_UNUSED_BYTES = 2**29
"""What a source may ask for and never use, such as the stacks of 64 threads."""

# Parameters of glibc's mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


def num_cpus() -> int:
    """Cores this process may use: the CPU limit of the pod or the affinity, whichever is smaller; at least 1."""
    return max(1, min(len(os.sched_getaffinity(0)), _cgroup_limit() or math.inf).__ceil__())


def threads(config: ClusterSection) -> dict[str, int]:
    """TensorFlow's thread counts: as configured, else the CPU limit of the pod and not the node's cores."""
    return {
        "intra_op": config.intra_op_threads or num_cpus(),
        "inter_op": config.inter_op_threads or num_cpus(),
    }


def prepare_process(environ: MutableMapping[str, str]) -> None:
    """Settings of the process that must be there before TensorFlow is imported; the user's own values win."""
    environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if platform.machine() in ("x86_64", "AMD64"):
        # On older CPUs it is off by default, and without it the bits depend on the number of threads.
        environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Have glibc keep the buffers of a step instead of giving them back to the kernel and asking again.

    Otherwise each step costs about 500 page faults with XLA and 2,300 without: a fifth to half of the time on a virtual
    machine (docs/benchmarks.md). The largest threshold that glibc takes is 32 MiB; a chunk of examples stays below it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    for parameter, num_bytes in ((_M_MMAP_THRESHOLD, 2**25), (_M_TRIM_THRESHOLD, 2**30), (_M_TOP_PAD, 2**26)):
        mallopt(parameter, num_bytes)


def make_strategy(config: ClusterSection, workers: Workers) -> Any:
    """Set threads and devices, then a strategy over all visible GPUs, or over the CPU, of all workers.

    Raises:
        NotFoundError: `expected_gpus` are not visible.
        PeerLostError: another worker went away at this moment.
    """
    import tensorflow as tf

    counts = threads(config)
    tf.config.threading.set_intra_op_parallelism_threads(counts["intra_op"])
    tf.config.threading.set_inter_op_parallelism_threads(counts["inter_op"])
    gpus = tf.config.list_physical_devices("GPU")
    if config.expected_gpus is not None and len(gpus) != config.expected_gpus:
        raise NotFoundError(
            f"cluster.expected_gpus: {config.expected_gpus} must be visible, TensorFlow sees {len(gpus)}; check the GPU "
            "image flavour, the driver and the pod's limits"
        )
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus and not workers.are_several:
        return tf.distribute.MirroredStrategy([f"/gpu:{index}" for index in range(len(gpus))])
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * config.cpu_replicas)
    if workers.are_several:
        return _join(config, workers, num_cpu_devices=None if gpus else config.cpu_replicas)
    return tf.distribute.MirroredStrategy([f"/cpu:{index}" for index in range(config.cpu_replicas)])


def _join(config: ClusterSection, workers: Workers, *, num_cpu_devices: int | None) -> Any:
    """Start TensorFlow's server, and the strategy over all workers; each of them does so at about the same time."""
    import tensorflow as tf
    from tensorflow.compiler.xla.tsl.protobuf import coordination_config_pb2
    from tensorflow.python.eager import context

    # The strategy would choose this service too, but its limit on the wait for the others is an hour.
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=int(JOIN_SECONDS * 1000),
        heartbeat_timeout_in_ms=int(config.peer_timeout_seconds * 1000),
        coordinated_jobs=[coordination_config_pb2.CoordinatedJob(name="worker", num_tasks=workers.count)],
    )
    context.context().coordination_service.cluster_register_with_barrier = True
    handler = signal.getsignal(signal.SIGTERM)
    # TensorFlow's wait holds the interpreter's lock. Only a timer outside of the interpreter can end it.
    faulthandler.dump_traceback_later(2 * JOIN_SECONDS, exit=True)
    try:
        with peer_errors(workers, is_joining=True), _cpu_devices(num_cpu_devices):
            return tf.distribute.MultiWorkerMirroredStrategy()
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGTERM, handler)  # TensorFlow's preemption notifier takes it without a word


@contextlib.contextmanager
def _cpu_devices(count: int | None) -> Iterator[None]:
    """The strategy would take one CPU device of each worker, however many there are; inside, it takes `count`."""
    from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended

    def local_devices(self: object, cluster_resolver: object, worker_device: str) -> tuple[tuple[str, ...], str]:
        return tuple(f"{worker_device}/device:CPU:{index}" for index in range(count or 0)), "CPU"

    original = CollectiveAllReduceExtended._initialize_local_devices
    if count is not None:
        CollectiveAllReduceExtended._initialize_local_devices = local_devices
    try:
        yield
    finally:
        CollectiveAllReduceExtended._initialize_local_devices = original


def name_devices(local_devices: tuple[str, ...], *, num_workers: int) -> tuple[str, ...]:
    """The devices of all workers, in the order of the replicas; each worker has as many as this one.

    CPU devices are named as in one process: where CPU replicas are placed changes no bit (docs/workers.md). On GPUs it may.
    """
    if all("CPU" in name for name in local_devices):
        numbers = range(num_workers * len(local_devices))
        return tuple(f"/job:localhost/replica:0/task:0/device:CPU:{number}" for number in numbers)
    if num_workers == 1:
        return local_devices
    return tuple(
        re.sub(r"/task:\d+", f"/task:{worker}", name) for worker in range(num_workers) for name in local_devices
    )


def check_batch(global_batch_size: int, *, num_replicas: int, num_examples: int) -> None:
    """Refuse a batch that cannot be shared equally, or that is larger than the data.

    Raises:
        ConfigError: with the nearest sizes that work.
    """
    if global_batch_size > num_examples:
        raise ConfigError(
            f"train.global_batch_size must be at most the {num_examples} training examples, received {global_batch_size}"
        )
    if global_batch_size % num_replicas:
        lower = global_batch_size // num_replicas * num_replicas
        choices = f"{lower} or {lower + num_replicas}" if lower else str(num_replicas)
        raise ConfigError(
            f"train.global_batch_size must be a multiple of the {num_replicas} replicas, received {global_batch_size}; "
            f"use {choices}"
        )


def resolve_compile(train: TrainSection, *, dropout: float, num_replicas: int, intra_op_threads: int) -> str:
    """`xla` or `graph`. The rule looks at facts, never at a clock: the choice decides the result's bits.

    XLA wins with one replica on two or more cores; one XLA program cannot span replicas; with dropout and on one core
    the graph is as fast (docs/benchmarks.md).

    Raises:
        ConfigError: xla asked for with several replicas.
    """
    if train.compile == "xla" and num_replicas > 1:
        raise ConfigError(f"train.compile: xla works with one replica, received {num_replicas}; use graph or auto")
    if train.compile != "auto":
        return train.compile
    return "xla" if num_replicas == 1 and intra_op_threads >= 2 and not dropout else "graph"


def _cgroup_limit() -> float | None:
    """CPU limit of the container in cores, from cgroup v2 or v1; None when there is none."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass
    try:
        folder = Path("/sys/fs/cgroup/cpu")
        quota_microseconds = int((folder / "cpu.cfs_quota_us").read_text(encoding="ascii"))
        period_microseconds = int((folder / "cpu.cfs_period_us").read_text(encoding="ascii"))
        return quota_microseconds / period_microseconds if quota_microseconds > 0 else None
    except (OSError, ValueError):
        return None


def memory_limit() -> int | None:
    """Memory limit of the container in bytes, from cgroup v2 or v1; None when there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limit = int(Path(path).read_text(encoding="ascii"))
        except (OSError, ValueError):  # not there, or `max`
            continue
        return limit if limit < _NO_LIMIT_BYTES else None
    return None


def memory_in_use() -> dict[str, int]:
    """Bytes of this process: `RssAnon`, which it cannot give back, and `VmData`, which it asked for; {} but on Linux."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return {}
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in lines)}
    return {name: int(fields[name][0]) * 1024 for name in ("RssAnon", "VmData") if name in fields}


@contextlib.contextmanager
def held_to_memory(limit: int | None) -> Iterator[None]:
    """Have an array that the pod's limit cannot hold raise MemoryError inside this block: the kernel would kill the pod.

    Linux counts what is asked for, used or not. So there is some room above the limit, and smaller excesses are not noticed.
    """
    before = memory_in_use()
    if limit is None or len(before) < 2:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = before["VmData"] + max(0, limit - before["RssAnon"]) + _UNUSED_BYTES
    lower = most if soft == resource.RLIM_INFINITY else min(soft, most)
    resource.setrlimit(resource.RLIMIT_DATA, (lower, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
