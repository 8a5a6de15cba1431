"""`Store`: create, put, get, list and delete of whole objects under keys, each bounded by a deadline.

Owns the retries, the deadline, and the count of requests. What sends one request is a `Backend`: `cloud.py` for `s3:`, `gs:` and
`az:`, `folder.py` for `file:`. It knows nothing about runs.
"""

import concurrent.futures
import functools
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from typing import TypeVar

from job import clock
from job.errors import NotFoundError, UnavailableError
from job.logs import warn
from job.records import MAX_BYTES
from job.store.backend import AlreadyExists, Backend, Entry, TransientError, point
from job.store.faults import CHECK_DISK, CHECK_NETWORK

_FIRST_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 5.0
_STALE_SECONDS = 3600.0

T = TypeVar("T")


VERBS = ("check", "create", "delete", "get", "list", "put", "sweep")
OUTCOMES = ("ok", "error")
"""Of requests, as `Traffic` counts them."""


class Traffic:
    """Counts requests, over all the stores that share it and all their threads."""

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        """By verb and outcome, `ok` or `error`; a write that found its key taken was answered, so it is ok."""
        self.num_retries = 0
        self._lock = threading.Lock()

    def count(self, verb: str, *, outcome: str) -> None:
        """One request was answered, or was given up."""
        assert verb in VERBS and outcome in OUTCOMES
        with self._lock:
            self.requests[verb, outcome] += 1

    def count_retry(self) -> None:
        """A request is made again."""
        with self._lock:
            self.num_retries += 1


class Store:
    """Whole objects under keys, with every operation bounded by a deadline.

    Requests run in a worker thread: in the main thread a native call would hold SIGTERM back until it returns.
    """

    def __init__(self, backend: Backend, *, uri: str, deadline_seconds: float, traffic: Traffic | None = None) -> None:
        self.uri = uri
        self._traffic = traffic or Traffic()
        self._backend = backend
        self._deadline_seconds = deadline_seconds
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="store")

    def create(self, key: str, data: bytes) -> bytes:
        """Write `data` under a new key and return what is recorded there: `data` itself, or what another writer wrote first.

        A refusal or a lost reply may hide our own success, so the key is read again before it is called lost.

        Raises:
            IntegrityError: what another writer wrote is longer than `data` and than any record; it was not read.
        """
        max_bytes = max(len(data), MAX_BYTES)

        def attempt() -> bytes:
            try:
                with point("create", key):
                    self._backend.create(key, data)
            except AlreadyExists as refused:
                return self._reread(key, max_bytes=max_bytes, cause=refused)
            except TransientError:
                recorded = self._peek(key, max_bytes=max_bytes)
                if recorded is None:
                    raise
                return recorded
            return data

        return self._until_deadline("create", key, attempt)

    def refuses_second_create(self, key: str, recorded: bytes) -> bool:
        """Whether a create-only write of an existing key is refused; writes its own content again, so it does no harm."""

        def attempt() -> bool:
            try:
                self._backend.create(key, recorded)
            except AlreadyExists:
                return True
            return False

        return self._until_deadline("create", key, attempt)

    def put(self, key: str, data: bytes) -> None:
        """Write `data`, replacing what is there."""
        with point("put", key):
            self._until_deadline("put", key, lambda: self._backend.put(key, data))

    def get(self, key: str, *, max_bytes: int | None = None) -> bytes | None:
        """Read an object; None when absent.

        Raises:
            IntegrityError: it has more than `max_bytes`; its content was not read.
        """

        def attempt() -> bytes | None:
            try:
                return self._backend.get(key, max_bytes=max_bytes)
            except FileNotFoundError:
                return None

        return self._until_deadline("get", key, attempt)

    def list_objects(self, prefix: str) -> list[Entry]:
        """All objects under a folder, sorted by key; also the probe that tells whether the bucket is there."""
        return self._until_deadline("list", prefix, lambda: self._backend.list_objects(prefix))

    def list_folders(self, prefix: str) -> list[str]:
        """Names of the folders directly under `prefix`, sorted."""
        return self._until_deadline("list", prefix, lambda: self._backend.list_folders(prefix))

    def delete(self, key: str) -> None:
        """Remove an object; absent is fine."""
        with point("delete", key):
            self._until_deadline("delete", key, lambda: self._backend.delete(key))

    def check_keys(self, keys: Iterable[str]) -> None:
        """Find out before hours of work whether its results can be written.

        Raises:
            ConfigError: a key is too long.
            AccessDeniedError: a folder that is there cannot be written.
        """
        for key in keys:
            self._until_deadline("check", key, functools.partial(self._backend.check_key, key))

    def check_room(self, num_bytes: int) -> None:
        """Find out before hours of work whether `num_bytes` more find room.

        Raises:
            UnavailableError: they do not.
        """
        free_bytes = self._until_deadline("check", "", self._backend.free_bytes)
        if free_bytes is not None and free_bytes < num_bytes:
            raise UnavailableError(
                f"store {self.uri}: the result takes {num_bytes / 1e6:.1f} MB or more, {free_bytes / 1e6:.1f} MB are free: No "
                "space left on device; make room or choose another folder, then start again"
            )

    def sweep(self, prefix: str) -> None:
        """Remove what writes that were killed an hour ago or earlier left under a folder."""
        attempt = functools.partial(self._backend.sweep, prefix, older_than_seconds=_STALE_SECONDS)
        with point("sweep", prefix):
            self._until_deadline("sweep", prefix, attempt)

    def location(self, key: str) -> str:
        """The full URI of a key, for people."""
        return f"{self.uri.rstrip('/')}/{key}"

    def _reread(self, key: str, *, max_bytes: int, cause: Exception) -> bytes:
        try:
            return self._backend.get(key, max_bytes=max_bytes)
        except FileNotFoundError:  # AWS answers 409 while another writes: nothing may stand there yet
            raise TransientError(f"create was refused, but {key} is absent") from cause

    def _peek(self, key: str, *, max_bytes: int) -> bytes | None:
        try:
            return self._backend.get(key, max_bytes=max_bytes)
        except (FileNotFoundError, TransientError):
            return None

    def _until_deadline(self, verb: str, key: str, attempt: Callable[[], T]) -> T:
        """Run `attempt` until it succeeds, fails for good, or the deadline has passed."""
        deadline = clock.monotonic() + self._deadline_seconds
        backoff = _FIRST_BACKOFF_SECONDS
        reasons: dict[str, None] = {}  # a set in order: the last try may only have run out of time
        action = CHECK_DISK if self.uri.startswith("file:") else CHECK_NETWORK
        while True:
            try:
                return self._counted(verb, attempt, deadline=deadline)
            except FileNotFoundError as error:  # in answer to a write: no store is there
                raise NotFoundError(f"store {self.uri}: {error}; correct store.uri or store.endpoint") from error
            except TransientError as error:
                wait = backoff * clock.uniform(0.5, 1.5)
                reasons[str(error)] = None
                action = error.action or action
                if clock.monotonic() + wait >= deadline:
                    raise UnavailableError(
                        f"store {self.uri}: {verb} {key or '(root)'} failed for {self._deadline_seconds:g} s "
                        f"(store.deadline_seconds): {', then: '.join([*reasons][-2:])}; {action}, then start again"
                    ) from error
                warn("store.retry", verb=verb, key=key, wait_seconds=round(wait, 2), reason=str(error))
                self._traffic.count_retry()
                clock.sleep(wait)
                backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)

    def _counted(self, verb: str, attempt: Callable[[], T], *, deadline: float) -> T:
        outcome = "error"
        try:
            result = self._in_worker(attempt, deadline=deadline)
            outcome = "ok"
            return result
        finally:
            self._traffic.count(verb, outcome=outcome)

    def _in_worker(self, attempt: Callable[[], T], *, deadline: float) -> T:
        future = self._executor.submit(attempt)

        def is_done(seconds: float) -> bool:
            return bool(concurrent.futures.wait([future], timeout=seconds).done)

        if clock.wait(is_done, seconds=deadline - clock.monotonic()):
            return future.result()
        # The stuck request keeps its thread until its own time-out; later calls get a fresh one.
        self._executor.shutdown(wait=False)
        self._executor = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="store")
        raise TransientError("no answer before the deadline")
