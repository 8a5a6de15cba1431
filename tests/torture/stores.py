"""R10 and R11: a store that fails in every way on every verb, and a COMMIT whose reply is lost."""

import functools
import socket
import time
from dataclasses import replace

from tests.job.store.s3_faults import RESET, RESET_AFTER_STORING, SILENCE, SILENCE_AFTER_STORING, Fault, reply
from tests.torture import plain
from tests.torture.campaign import Campaign, Result, Trial
from tests.torture.checks import Objects, TrialFailed, check_same, objects_of_bucket
from tests.torture.kills import reference
from tests.torture.s3_proxy import Rule, S3Proxy

_ENVIRON = {"AWS_ACCESS_KEY_ID": "canary-id", "AWS_SECRET_ACCESS_KEY": "canary-secret"}
_TIMEOUT_SECONDS, _DEADLINE_SECONDS = 0.5, 3.0
_MAX_SECONDS = 60.0
"""Of an attempt: the plain workload waits for each of nine checkpoints, whose pruning and log may each take a deadline."""
_FOR_GOOD = 10**9

_VERBS = {
    "create": (Rule(method="PUT"), 30),
    "get": (Rule(method="GET", excludes="list-type"), 2),
    "list": (Rule(method="GET", contains="list-type"), 15),
    "delete": (Rule(method="POST", contains="delete"), 10),
}
"""The requests of each verb, and how many of them an undisturbed run makes at least."""

_TRANSIENT = {
    "500": reply(500, "InternalError"),
    "503": reply(503, "SlowDown"),
    "429": reply(429, "TooManyRequests"),
    "reset": RESET,
    "read time-out": SILENCE,
    "short read": Fault(is_cut_off=True),
}
_ONLY_OF_WRITES = {
    "reset after our own write": RESET_AFTER_STORING,
    "read time-out after our own write": SILENCE_AFTER_STORING,
    "500 after our own write": replace(reply(500, "InternalError"), is_stored=True),
    "412 after our own write": replace(reply(412, "PreconditionFailed"), is_stored=True),
    "409": reply(409, "ConditionalRequestConflict"),
}
_PERMANENT = {
    "403": (reply(403, "AccessDenied"), 77),
    "expired token": (reply(400, "ExpiredToken"), 77),
    "no such bucket": (reply(404, "NoSuchBucket"), 66),
    "500 for good": (reply(500, "InternalError"), 69),
    "reset for good": (RESET, 69),
    "silence for good": (SILENCE, 69),
}


@functools.cache
def _proxy() -> S3Proxy:
    return S3Proxy()


@functools.cache
def _black_hole() -> str:
    """An endpoint that never takes a connection: its queue is full."""
    server = socket.socket()
    server.bind(("127.0.0.1", 0))
    server.listen(0)
    _held.append(server)
    for _ in range(4):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(server.getsockname())
        _held.append(client)
    return f"http://127.0.0.1:{server.getsockname()[1]}"


_held: list[socket.socket] = []


def _flags(bucket: str, endpoint: str) -> tuple[str, ...]:
    return (
        f"--store.uri=s3://{bucket}/prefix",
        f"--store.endpoint={endpoint}",
        "--store.region=us-east-1",
        f"--store.timeout_seconds={_TIMEOUT_SECONDS}",
        f"--store.deadline_seconds={_DEADLINE_SECONDS}",
    )


class _Bucket:
    """A fresh bucket behind the proxy."""

    def __init__(self, trial: Trial) -> None:
        self._folder, self._proxy = trial.folder, _proxy()
        self.name = f"torture-{trial.index}-{trial.random.getrandbits(32):08x}"
        self._proxy.make_bucket(self.name)

    def run(self, *rules: Rule, endpoint: str | None = None) -> tuple[plain.Ended, float]:
        """One attempt under these rules; returns how it ended, and after how many seconds."""
        self._proxy.set_rules(*rules)
        started = time.monotonic()
        ended = plain.run(self._folder, _flags(self.name, endpoint or self._proxy.endpoint), environ=_ENVIRON)
        return ended, time.monotonic() - started

    def num_broken(self) -> int:
        return self._proxy.num_broken()

    def objects(self) -> Objects:
        return objects_of_bucket(self._proxy.moto, self.name, prefix="prefix/")

    def check_finished_same(self, *, what: str) -> None:
        """Started again without faults, the run ends as if nothing had happened."""
        ended, _ = self.run()
        if ended.code != 0:
            raise TrialFailed(f"{what}: the next start ended with {ended.code}: {ended.error}")
        check_same(self.objects(), reference())


def _fail_store(trial: Trial) -> Result:
    random = trial.random
    reference()
    bucket = _Bucket(trial)
    verb, expected, endpoint = random.choice(list(_VERBS)), 0, None
    rule, num_requests = _VERBS[verb]
    rule = replace(rule, skip=random.choice((0, random.randrange(num_requests))))
    if random.random() < 0.6:
        faults = _TRANSIENT | (_ONLY_OF_WRITES if verb == "create" else {})
        kind = random.choice([*faults, "slow body"])
        if kind == "slow body":
            rule = replace(rule, slow_seconds=0.2)
        else:
            rule = replace(rule, fault=faults[kind], times=random.randint(1, 2))
    else:
        kind = random.choice([*_PERMANENT, "connect time-out"])
        if kind == "connect time-out":
            endpoint, expected = _black_hole(), 69
        else:
            fault, expected = _PERMANENT[kind]
            rule = replace(rule, fault=fault, times=_FOR_GOOD)
    what = f"{kind} on {verb}, after {rule.skip}"
    ended, seconds = bucket.run(rule, endpoint=endpoint)
    num_broken = bucket.num_broken()
    # A store that fails only in cleaning up or in logs costs a warning.
    if ended.code not in ({0} if expected == 0 else {0, expected} if endpoint is None else {expected}):
        raise TrialFailed(f"{what}: must end with {expected}, received {ended.code}: {ended.error}")
    if expected and rule.skip == 0 and verb != "delete" and ended.code != expected:
        raise TrialFailed(f"{what}: must end with {expected}, received {ended.code}")
    if seconds > _MAX_SECONDS:
        raise TrialFailed(f"{what}: took {seconds:.1f} s")
    if any(secret in ended.stdout + ended.stderr for secret in ("canary-secret",)):
        raise TrialFailed(f"{what}: a credential was printed")
    bucket.check_finished_same(what=what)
    return Result(
        note=f"{what}: {num_broken} requests broken, ended with {ended.code}",
        figures={"requests broken": float(num_broken), f"ended with {ended.code}": 1.0, "attempt_seconds": seconds},
    )


def _lose_reply_of_commit(trial: Trial) -> Result:
    random = trial.random
    reference()
    bucket = _Bucket(trial)
    kind = random.choice(
        [
            "reset after our own write",
            "read time-out after our own write",
            "500 after our own write",
            "412 after our own write",
        ]
    )
    rules = [Rule(method="PUT", contains="COMMIT.json", fault=_ONLY_OF_WRITES[kind], times=random.randint(1, 2))]
    is_blind = random.random() < 0.4
    if is_blind:  # reading it back fails at first, too
        rules.append(
            Rule(method="GET", contains="COMMIT.json", skip=1, times=random.randint(1, 2), fault=reply(503, "SlowDown"))
        )
    ended, seconds = bucket.run(*rules)
    num_broken = bucket.num_broken()
    what = f"{kind}{', and reading back fails at first' if is_blind else ''}"
    if ended.code != 0:
        raise TrialFailed(f"{what}: ended with {ended.code}: {ended.error}")
    if num_broken < 1:
        raise TrialFailed(f"{what}: no request was broken")
    check_same(bucket.objects(), reference())
    bucket.check_finished_same(what=what)
    return Result(note=what, figures={"requests broken": float(num_broken), "attempt_seconds": seconds})


CAMPAIGNS = (
    Campaign(
        name="R10",
        promise="store faults on every verb: transient ones pass, permanent ones get their exit code in time, nothing is lost",
        trial=_fail_store,
        num_full=500,
        num_quick=20,
    ),
    Campaign(
        name="R11",
        promise="the store keeps COMMIT and its reply is lost: exit 0, one COMMIT",
        trial=_lose_reply_of_commit,
        num_full=200,
        num_quick=10,
    ),
)
