"""The workers of a run: who they are, the wait until all are there, and what they tell each other between steps.

TensorFlow's strategy does the arithmetic. This module starts it only when it cannot hang, and turns its errors into ours.
Worker 0 is the chief: the only one that writes to the store.
"""

import contextlib
import json
import math
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

from pydantic import BaseModel, Field, StringConstraints, ValidationError

from job import clock
from job.digests import canonical_json
from job.errors import ConfigError, PeerLostError, TrainingError, UnavailableError
from job.logs import emit, warn
from job.observe.phases import WAIT_FOR_WORKERS, Phases
from job.texts import one_line

_POLL_SECONDS = 0.1
_CONNECT_SECONDS = 2.0
_LOOK_SECONDS = 5.0
_FIRST_WORD_SECONDS, _WORD_SECONDS = 5.0, 30.0
"""After how long a wait the log names those that are missing, and how often then."""
_MESSAGE_BYTES = 4096
_NUM_NAMED = 4
_COORDINATION = "/tensorflow.CoordinationService/"
_ABORTED, _DETAILS = "Collective ops is aborted by: ", "Additional GRPC error information"


class _Cluster(BaseModel, extra="forbid"):
    # No IPv6 address in brackets: TensorFlow's server listens on IPv4 only.
    worker: list[Annotated[str, StringConstraints(pattern=r"^[^\s:/\[\]]+:[0-9]{1,5}$")]]


class _Task(BaseModel):
    type: Literal["worker"]
    index: Annotated[int, Field(strict=True, ge=0)]


class _TfConfig(BaseModel):
    cluster: _Cluster
    task: _Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Workers:
    """The workers of a run, in the order of their indexes, and which of them this process is.

    Attributes:
        addresses: `host:port` of each.
    """

    index: int
    addresses: tuple[str, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.addresses)

    @property
    def are_several(self) -> bool:
        """Whether this process trains together with others."""
        return self.count > 1

    @property
    def is_chief(self) -> bool:
        """Whether this process is the only one that writes to the store."""
        return self.index == 0


ALONE = Workers(index=0, addresses=("",))


def workers_from_environment(environ: Mapping[str, str], *, count: int) -> Workers:
    """Read TF_CONFIG, in which TensorFlow's own tools name the workers.

    Args:
        count: `cluster.workers`.

    Raises:
        ConfigError: it is absent, cannot be read, or does not fit `cluster.workers`.
    """
    text = environ.get("TF_CONFIG", "")
    if count == 1 and not text:
        return ALONE
    if not text:
        raise ConfigError(
            f"TF_CONFIG: must name the {count} workers of cluster.workers, and is not set; the chart sets it, and here "
            "scripts/workers"
        )
    try:
        content = _TfConfig.model_validate_json(text)
    except ValidationError as error:
        if count == 1:  # another tool's, which names no workers of ours
            return ALONE
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            'TF_CONFIG: must be {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": N}}; '
            f"{where + ': ' if where else ''}{one_line(first['msg'], limit=120)}, received {one_line(text, limit=200)!r}"
        ) from error
    workers = Workers(index=content.task.index, addresses=tuple(content.cluster.worker))
    _check(workers, count=count)
    return workers if workers.are_several else ALONE


def _check(workers: Workers, *, count: int) -> None:
    if workers.count != count:
        raise ConfigError(
            f"cluster.workers: must equal the {workers.count} workers of TF_CONFIG, received {count}; set both alike"
        )
    if workers.index >= count:
        raise ConfigError(
            f"TF_CONFIG: task.index must be below {count}, the number of workers, received {workers.index}"
        )
    if len(set(workers.addresses)) != count:
        raise ConfigError("TF_CONFIG: cluster.worker names an address twice; each worker needs one of its own")
    bad = [address for address in workers.addresses if not 1 <= _split(address)[1] <= 65_535]
    if bad:
        raise ConfigError(f"TF_CONFIG: cluster.worker: the port must be 1 to 65535, received {bad[0]!r}")


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


def wait_for_workers(workers: Workers, *, timeout_seconds: float, look: Callable[[], None]) -> None:
    """Wait in Python, where signals are seen, until all workers can start TensorFlow's server at once.

    TensorFlow's own wait holds the interpreter's lock: no signal, no watchdog and no log line gets through.
      1. Each worker opens its door: a plain listening socket on its port.
      2. The chief waits until every door is open. Then it starts TensorFlow's server on its own port.
      3. Each worker waits until the chief's port answers. Then it shuts its door and starts TensorFlow's server too.

    Args:
        look: is called every few seconds; may raise to leave.

    Raises:
        PeerLostError: not all came in time; names those that did not.
        UnavailableError: this worker's port is taken.
    """
    own = workers.addresses[workers.index]
    wanted = [each for each in workers.addresses if each != own] if workers.is_chief else [workers.addresses[0]]
    answered: set[str] = set()
    reasons: dict[str, str] = {}
    is_over = threading.Event()
    for address in wanted:
        threading.Thread(target=_knock, args=(address, answered, reasons, is_over), daemon=True, name="wait").start()
    next_look = started = clock.monotonic()
    next_word = started + _FIRST_WORD_SECONDS
    with _open_door(own, is_open=not workers.is_chief):
        try:
            while missing := [address for address in wanted if address not in answered]:
                now = clock.monotonic()
                if now >= started + timeout_seconds:
                    reason = reasons.get(missing[0], "no answer yet")
                    raise PeerLostError(
                        f"cluster: {_name(workers, missing)} did not answer within {timeout_seconds:g} s "
                        f"(cluster.start_timeout_seconds): {reason}; look at its log; in a cluster, at its pod"
                    )
                if now >= next_look:
                    next_look = now + _LOOK_SECONDS
                    look()
                if now >= next_word:
                    next_word = now + _WORD_SECONDS
                    emit("cluster.waiting", for_workers=_name(workers, missing), seconds=round(now - started, 1))
                clock.sleep(_POLL_SECONDS)
        finally:
            is_over.set()


def _name(workers: Workers, addresses: list[str]) -> str:
    """Such as `worker 1 (10.0.0.7:2222), worker 2 (10.0.0.8:2222) and 3 more`."""
    names = [f"worker {workers.addresses.index(address)} ({address})" for address in addresses[:_NUM_NAMED]]
    more = f" and {len(addresses) - _NUM_NAMED} more" if len(addresses) > _NUM_NAMED else ""
    return ", ".join(names) + more


def _knock(address: str, answered: set[str], reasons: dict[str, str], is_over: threading.Event) -> None:
    """Try to connect until it works. On a thread of its own: a name server that is away holds the caller for seconds."""
    while not is_over.wait(_POLL_SECONDS):
        try:
            socket.create_connection(_split(address), timeout=_CONNECT_SECONDS).close()
        except OSError as error:  # no such name yet, nobody listens yet, no route
            reasons[address] = error.strerror or str(error)
            continue
        except UnicodeError:
            reasons[address] = "no name server can have such a name"
            return
        answered.add(address)
        return


@contextlib.contextmanager
def _open_door(address: str, *, is_open: bool) -> Iterator[None]:
    """Listen on this worker's port while inside; the kernel answers, nothing is ever read. Closed: only try the port."""
    port = _split(address)[1]
    with socket.socket() as door:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            door.bind(("", port))
            if is_open:
                door.listen(64)
        except OSError as error:
            raise UnavailableError(
                f"cluster: port {port} of this worker (TF_CONFIG) cannot be used: {error.strerror}; end what holds it"
            ) from error
        if not is_open:
            door.close()
        yield


@contextlib.contextmanager
def peer_errors(workers: Workers, *, is_joining: bool = False) -> Iterator[None]:
    """Turn what TensorFlow raises when another worker is gone into `PeerLostError`. With one worker, nothing is turned.

    TensorFlow's own words are in the log, as `cluster.lost`.

    Args:
        is_joining: every error of TensorFlow means that the workers did not come together.
    """
    if not workers.are_several:
        yield
        return
    import tensorflow as tf

    lost = (
        tf.errors.UnavailableError,
        tf.errors.DeadlineExceededError,
        tf.errors.AbortedError,
        tf.errors.CancelledError,
    )
    try:
        yield
    except tf.errors.OpError as error:
        text = str(error)
        for sign, words in _DIFFERENCES:
            if sign in text:
                raise ConfigError(f"cluster: {words}; give all the same") from error
        if not is_joining and not isinstance(error, lost) and _ABORTED not in text:
            raise
        warn("cluster.lost", tensorflow=one_line(text, limit=1000))
        raise PeerLostError(f"cluster: {_say_lost(text, workers)}; start again") from error


_DIFFERENCES = (
    (
        "joining a group with size",
        "the workers have different numbers of replicas: cluster.cpu_replicas, or visible GPUs",
    ),
    ("Shape mismatch in the collective", "the workers build different models: model.build, or what it reads"),
)
"""In TensorFlow's message -> what differs between the workers."""

_SIGNS = (
    ("Wait_for_all_tasks_to_register", "did not join: it ended just now, or something else answers on its address"),
    (
        "different incarnation",
        "was started again without this worker, which had been silent or is a second one of its index",
    ),
    (
        "device incarnation",
        "was started again without this worker, which had been silent or is a second one of its index",
    ),
    ("Connection re", "is gone: its connection was closed"),
    ("Socket closed", "is gone: its connection was closed"),
    ("Broken pipe", "is gone: its connection was closed"),
    ("heartbeat", "is gone: it was silent for longer than cluster.peer_timeout_seconds"),
    ("CoordinationService", "is gone: it was silent for longer than cluster.peer_timeout_seconds"),
)
"""In TensorFlow's message -> what has become of the other worker."""


def _say_lost(text: str, workers: Workers) -> str:
    what = next((words for sign, words in _SIGNS if sign.lower() in text.lower()), "")
    if not what:
        what = f"is gone: {one_line((text.partition(_ABORTED)[2] or text).partition(_DETAILS)[0], limit=200)}"
    return f"{_name_lost(text, workers)} {what}"


def _name_lost(text: str, workers: Workers) -> str:
    """The other worker that TensorFlow's message is about."""
    named = {int(number) for number in re.findall(r"/task:(\d+)", text)} - {workers.index}
    if workers.count == 2:
        return f"worker {1 - workers.index}"
    if not named and not workers.is_chief and _COORDINATION in text:
        return "worker 0"  # TensorFlow's service runs there
    return f"worker {named.pop()}" if len(named) == 1 else "another worker"


def was_stopped_while_joining() -> bool:
    """Whether a SIGTERM fell into the moment in which TensorFlow's handler stood in place of ours.

    TensorFlow looks once a second, and tells its coordination service, which all workers can ask.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    try:
        context.context().get_config_key_value("TF_DEFAULT_PREEMPTION_NOTICE_KEY", timeout_in_ms=10)
    except tf.errors.OpError:
        return False
    return True


class NothingToTrainError(Exception):
    """The run was committed while this worker waited for others."""


class Exchange(Protocol):
    """What the workers tell each other between steps: each says something, and all hear everything."""

    def __call__(self, *, has_limit: bool = True, **message: Any) -> list[dict[str, Any]]:
        """The messages of all workers in the order of their indexes; waits until the last one has come.

        Args:
            has_limit: False: as long as all live, which their heartbeats say.

        Raises:
            PeerLostError: a worker is gone, or said nothing in time.
        """


def exchange_with_nobody(*, has_limit: bool = True, **message: Any) -> list[dict[str, Any]]:
    """The `Exchange` of a single worker."""
    return [message]


class StrategyExchange:
    """An `Exchange` through the strategy's own collectives: one all_gather of a JSON line from each worker."""

    def __init__(self, strategy: Any, workers: Workers, *, timeout_seconds: float, phases: Phases) -> None:
        """`strategy` spans the workers."""
        self._strategy, self._workers = strategy, workers
        self._timeout_seconds, self._phases = timeout_seconds, phases
        self._gather_rows: Any = None

    def __call__(self, *, has_limit: bool = True, **message: Any) -> list[dict[str, Any]]:
        """See `Exchange`. Gathers on a thread of its own, so that a signal interrupts the wait."""
        heard: list[list[dict[str, Any]]] = []
        failures: list[BaseException] = []

        def gather() -> None:
            try:
                heard.append(self._gather(message))
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
                failures.append(error)

        def has_ended(seconds: float) -> bool:
            thread.join(seconds)
            return not thread.is_alive()

        thread = threading.Thread(target=gather, daemon=True, name="exchange")
        with self._phases(WAIT_FOR_WORKERS):
            thread.start()
            clock.wait(has_ended, seconds=self._timeout_seconds if has_limit else math.inf)
        if failures:
            raise failures[0]
        if not heard:
            raise PeerLostError(
                f"cluster: a worker said nothing for {self._timeout_seconds:g} s (cluster.start_timeout_seconds); look at the "
                "logs of all workers"
            )
        return heard[0]

    def _gather(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        import tensorflow as tf

        data = canonical_json(message | {"worker": self._workers.index})
        if len(data) > _MESSAGE_BYTES:
            raise TrainingError(
                f"cluster: a worker's message has {len(data)} bytes, {_MESSAGE_BYTES} are possible: {data[:80]!r}..."
            )
        # Bytes as float32: the one type that every collective of every device takes.
        row = tf.constant([list(data.ljust(_MESSAGE_BYTES))], tf.float32)
        if self._gather_rows is None:
            self._gather_rows = _make_gather_rows(self._strategy)
        with peer_errors(self._workers):
            gathered = self._gather_rows(row)
            rows = self._strategy.experimental_local_results(gathered)[0].numpy()
        said = {one["worker"]: one for one in (json.loads(bytes(line.astype("uint8"))) for line in rows)}
        return [said[index] for index in range(self._workers.count)]


def _make_gather_rows(strategy: Any) -> Any:
    """A function float32 [1, N] -> [replicas, N] over all workers. Traced once: a new one for each call would cost half a MB of
    memory for good.
    """
    import tensorflow as tf

    def replica(row: Any) -> Any:
        return tf.distribute.get_replica_context().all_gather(tf.identity(row), axis=0)

    return tf.function(lambda row: strategy.run(replica, args=(row,)))
