"""The devices of this process and the tf.distribute strategy over them.

Owns thread counts, logical devices and the choice of replicas. Has to run before TensorFlow touches a device.
"""

import contextlib
import ctypes
import faulthandler
import math
import os
import re
import resource
import signal
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from job import ambient
from job.config import ClusterSection, TrainSection
from job.errors import ConfigError, NotFoundError
from job.training.workers import Workers, peer_errors

JOIN_SECONDS = 30.0
"""How long TensorFlow may wait for workers that were there a moment ago; nothing else of this process runs in that time."""

_DENSE_LAYERS = (
    "Sequential",
    "Functional",
    "InputLayer",
    "Dense",
    "Flatten",
    "Reshape",
    "Activation",
    "ReLU",
    "Softmax",
    "BatchNormalization",
    "LayerNormalization",
)
"""Keras' classes with which XLA is faster than the graph on two or more cores (docs/benchmarks.md)."""

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
    """What must be there before TensorFlow is imported."""
    ambient.take_over(environ)
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


def resolve_compile(
    train: TrainSection,
    *,
    model: Any,
    is_own: bool,
    device_names: tuple[str, ...],
    intra_op_threads: int,
    recorded: str | None = None,
) -> str:
    """`xla` or `graph`. The rule looks at facts, never at a clock: the choice decides the result's bits.

    One XLA program cannot span replicas. With one replica, `auto` is
      1. what the run began with, wherever it goes on;
      2. for a model of dense layers: XLA on two or more cores; with dropout and on one core the graph is as fast;
      3. for an own model on a GPU: XLA, when every layer supports it;
      4. else the graph: on CPUs XLA's convolutions take up to 20 times as long (docs/benchmarks.md).

    Args:
        model: a built Keras model.
        is_own: whether it is of the user's own; the reference model has the rule of the first version on GPUs too.
        recorded: what the standing run.json says.

    Raises:
        ConfigError: xla is asked for and cannot be; names the layer.
    """
    if train.compile == "graph":
        return "graph"
    why_not = _why_not_xla(model, num_replicas=len(device_names))
    if train.compile == "xla":
        if why_not:
            raise ConfigError(f"train.compile: xla {why_not}; use graph or auto")
        return "xla"
    if recorded == "graph" or why_not:
        return "graph"
    is_on_gpu = any("GPU" in name for name in device_names)
    is_faster = (is_own and is_on_gpu) or (intra_op_threads >= 2 and is_dense(model))
    return "xla" if recorded == "xla" or is_faster else "graph"


def _why_not_xla(model: Any, *, num_replicas: int) -> str:
    """Why XLA cannot compile the step, as far as the facts say it; empty: it can."""
    if num_replicas > 1:
        return f"works with one replica, received {num_replicas}"
    odd = next((layer for layer in layers_of(model) if not layer.supports_jit), None)
    return f"does not support layer {odd.name} ({type(odd).__name__}) of the model" if odd is not None else ""


def is_dense(model: Any) -> bool:
    """Whether a model consists of layers with which XLA is faster on CPUs. A class of the user's own is none of them."""
    kinds = [type(layer) for layer in layers_of(model)]
    return all(kind.__module__.startswith("keras.") and kind.__name__ in _DENSE_LAYERS for kind in kinds)


def layers_of(model: Any) -> Iterator[Any]:
    """The model and all its layers, those in layers too."""
    layers: Iterator[Any] = model._flatten_layers()  # Keras' own way, there is no public one
    return layers


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
