"""R19: the client against a real API server through a proxy that breaks its requests; the runs are real Jobs of busybox."""

import json
import random
import statistics
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

import pytest

from k8s import RunClient, submit
from k8s.api import Api
from k8s.errors import UnavailableError
from k8s.logs import LogLine, _Reader, _split_stamp
from k8s.status import RunStatus
from tests.e2e.api_proxy import ApiProxy, api_port, faulty_api
from tests.e2e.cluster import Namespace, Object
from tests.k8s.server import connection_to
from tests.torture.campaign import percentile

T = TypeVar("T")

_SECONDS = 180.0
"""A run that has not been told of by then hangs."""
_PARALLEL = 6
_KINDS = ("short", "long", "retried", "corrupt", "unknown", "cancelled")
_EXPECTED = {
    "short": ("Succeeded", 0),
    "long": ("Succeeded", 0),
    "retried": ("Succeeded", 0),
    "corrupt": ("Failed", 65),
    "unknown": ("Failed", 1),
}
_PROGRAM = """
for argument in "$@"; do
    case $argument in
    --train.epochs=*) kind=${argument#*=} ;;
    --run.seed=*) until=${argument#*=} ;;
    esac
done
end() {
    printf '{"run": "r", "attempt": "%s", "outcome": "%s", "code": %s, "reason": ""}' "$POD_NAME" "$2" "$1" >/dev/termination-log
    echo "{\\"event\\": \\"run.end\\", \\"code\\": $1}"
    exit "$1"
}
say() {
    echo "{\\"event\\": \\"line\\", \\"number\\": $1}"
    echo "line $1 on stderr" >&2
}
trap 'end 75 interrupted' TERM
number=0
while [ $number -lt 40 ]; do
    say $number
    number=$((number + 1))
    [ $((number % 8)) -ne 0 ] || sleep "$([ "$kind" = 1 ] && echo 0.1 || echo 0.5)"
done
case $kind in
3) [ "$(date +%s)" -ge "$until" ] || end 75 interrupted ;;
4) end 65 failed ;;
5) end 1 failed ;;
6) while true; do sleep 0.2; done ;;
esac
end 0 committed
"""


@dataclass(slots=True)
class Seen:
    """What one client was told about its run."""

    kind: str
    run: str = ""
    job: str = ""
    status: RunStatus | None = None
    lines: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Pod -> its log, where this client has followed it."""
    told_at: float = 0.0
    seconds: float = 0.0


class Trials:
    """So many runs, several at a time, each with a client of its own."""

    def __init__(self, ns: Namespace, *, port: int, seed: int) -> None:
        self._ns = ns
        self._port = port
        self._seed = seed
        self.wrong: list[str] = []

    def run(self, number: int) -> list[Seen]:
        """Submit and follow that many; what the clients got wrong is in `wrong`."""
        with (
            faulty_api(upstream=self._port, seed=self._seed) as (self.proxy, self._url),
            ThreadPoolExecutor(_PARALLEL) as pool,
        ):
            seen = [each for each in pool.map(self._one, range(number)) if each]
        self._check(seen)
        return seen

    def _client(self) -> RunClient:
        return RunClient(Api(connection_to(self._url, namespace=self._ns.name)))

    def _one(self, number: int) -> Seen | None:
        chance = random.Random(f"{self._seed} {number}")
        seen, began = Seen(kind=_KINDS[number % len(_KINDS)]), time.monotonic()
        client = self._client()
        try:
            settings = [f"train.epochs={_KINDS.index(seen.kind) + 1}", f"run.seed={int(time.time()) + 9}"]
            submitted = client.submit(settings)
            seen.run, seen.job = submitted.run, submitted.job
            if seen.kind == "cancelled":
                time.sleep(chance.uniform(0, 4))
                seen.status = client.cancel(seen.run, timeout_seconds=_SECONDS)
            else:
                if chance.random() < 0.6:
                    self._follow(client, seen)
                seen.status = client.wait(seen.run, timeout_seconds=_SECONDS)
            seen.told_at = time.time()
        except Exception as error:  # noqa: BLE001 - counted, with what it was
            self.wrong.append(f"run {number} ({seen.kind}, {seen.job}): {type(error).__name__}: {error}")
            return None
        seen.seconds = time.monotonic() - began
        return seen

    def _follow(self, client: RunClient, seen: Seen) -> None:
        for item in client.logs(seen.run, follow=True, timeout_seconds=_SECONDS):
            if isinstance(item, LogLine):
                seen.lines[item.pod].append(item.text)

    def _check(self, all_seen: list[Seen]) -> None:
        """Against the cluster itself, past the proxy."""
        jobs = {job["metadata"]["name"]: job for job in self._get("apis/batch/v1", "jobs")}
        runs = Counter(job["metadata"]["annotations"]["mnist-train/run"] for job in jobs.values())
        self.wrong += [f"{count} Jobs of run {run}" for run, count in runs.items() if count != 1]
        known = {seen.job for seen in all_seen}
        self.wrong += [f"Job {name} is nobody's" for name in jobs.keys() - known if not self._is_of_failed(name)]
        for seen in all_seen:
            if seen.kind == "cancelled":
                if seen.job in jobs:
                    self.wrong.append(f"{seen.job} was cancelled, and is there")
                continue
            assert seen.status
            if (seen.status.phase, seen.status.exit_code) != _EXPECTED[seen.kind]:
                self.wrong.append(f"{seen.job} ({seen.kind}): told {seen.status.phase}, {seen.status.exit_code}")
            self._check_lines(seen)

    def _is_of_failed(self, name: str) -> bool:
        return any(name in wrong for wrong in self.wrong)

    def _check_lines(self, seen: Seen) -> None:
        if not seen.lines:
            return
        pods = self._get("api/v1", f"pods?labelSelector=batch.kubernetes.io/job-name={seen.job}")
        for pod in pods:
            name = pod["metadata"]["name"]
            with urllib.request.urlopen(f"{self._base}/api/v1/namespaces/{self._ns.name}/pods/{name}/log") as reply:
                stored = reply.read().decode().splitlines()
            if seen.lines.get(name) != stored:
                told = seen.lines.get(name, [])
                lost, doubled = Counter(stored) - Counter(told), Counter(told) - Counter(stored)
                self.wrong.append(
                    f"log of {name}: {lost.total()} lines lost, {doubled.total()} too many, of {len(stored)}"
                )

    def _get(self, group: str, what: str) -> list[Object]:
        with urllib.request.urlopen(f"{self._base}/{group}/namespaces/{self._ns.name}/{what}") as reply:
            found: list[Object] = json.load(reply)["items"]
            return found

    @property
    def _base(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def lags(self, all_seen: list[Seen]) -> list[float]:
        """Seconds from the end of a Job, which the cluster rounds down to whole ones, to the verdict."""
        return [
            seen.told_at - datetime.fromisoformat(seen.status.finished).timestamp()
            for seen in all_seen
            if seen.status and seen.status.finished and not seen.lines
        ]


def _install(ns: Namespace) -> None:
    """A release whose runs are those of `_PROGRAM`: all else is the chart's."""
    ns.install(
        "train",
        {
            "image": {"repository": "busybox", "tag": "1", "pullPolicy": "IfNotPresent"},
            "schedule": "0 0 1 1 *",
            "activeDeadlineSeconds": 170,
            "backoffLimit": 1,
            "store": {"uri": "s3://no/store", "endpoint": "http://none.invalid"},
            "credentials": {"existingSecret": ""},
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "1", "memory": "64Mi"}},
            "terminationGracePeriodSeconds": 60,
        },
    )
    command = ["sh", "-c", _PROGRAM, "mnist-job"]
    path = "/spec/jobTemplate/spec/template/spec/containers/0/command"
    patch = [{"op": "add", "path": path, "value": command}]
    ns.kubectl("patch", "cronjob", "train", "--type=json", "-p", json.dumps(patch))


def _table(proxy: ApiProxy, trials: Trials, seen: list[Seen], seconds: float) -> str:
    lags = trials.lags(seen)
    times = [each.seconds for each in seen]
    followed = [each for each in seen if each.lines]
    num_lines = sum(len(lines) for each in followed for lines in each.lines.values())
    faults = ", ".join(f"{name} {count}" for name, count in sorted(proxy.counts.items()))
    rows = {
        "runs": f"{len(seen)}, {_PARALLEL} at a time, in {seconds:.0f} s",
        "requests": f"{proxy.num_requests}",
        "broken": f"{proxy.counts.total()}: {faults}",
        "wrong": f"{len(trials.wrong)}",
        "followed": f"{len(followed)} logs, {num_lines} lines",
        "s a run": _spread(times),
        "s to the verdict": f"{_spread(lags)} ({len(lags)} runs)",
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _spread(values: list[float]) -> str:
    return f"p50 {statistics.median(values):.1f}, p99 {percentile(values, 0.99):.1f}" if values else "-"


def _run_trials(ns: Namespace, number: int, *, seed: int) -> Trials:
    _install(ns)
    started = time.monotonic()
    with api_port() as port:
        trials = Trials(ns, port=port, seed=seed)
        seen = trials.run(number)
        print(f"R19, seed {seed}\n{_table(trials.proxy, trials, seen, time.monotonic() - started)}")
    return trials


def test_clients_are_right_whatever_is_broken(ns: Namespace) -> None:
    assert _run_trials(ns, 12, seed=1).wrong == []


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_two_hundred_runs_are_told_of_right(ns: Namespace) -> None:
    assert _run_trials(ns, 200, seed=2).wrong == []


def _create_again_under_a_new_name(api: Api, job: Object, **how: Any) -> Object:
    while True:
        try:
            return api.create_once("jobs", job)
        except UnavailableError:
            job["metadata"]["name"] += "x"


def _take_all(self: _Reader, parts: Iterable[bytes], *, until: datetime | None = None) -> Iterator[LogLine]:
    for part in parts:
        stamp, text = _split_stamp(part)
        self._find({}, stamp, part)
        yield LogLine(pod=self.pod, text=text.decode().removesuffix("\n"), data=text)


def _ask_once(self: Api, request: Callable[[], T]) -> T:
    return request()


@pytest.mark.long
@pytest.mark.parametrize(
    ("place", "name", "bug", "says"),
    [
        (submit, "create_job", _create_again_under_a_new_name, "is nobody's"),
        (_Reader, "take", _take_all, "lines lost, "),
        (Api, "persist", _ask_once, "Error: "),
    ],
    ids=["lost-reply-makes-a-second-job", "log-read-twice", "no-patience"],
)
def test_planted_bug_is_found(
    ns: Namespace, monkeypatch: pytest.MonkeyPatch, place: object, name: str, bug: Callable[..., object], says: str
) -> None:
    monkeypatch.setattr(place, name, bug)
    wrong = _run_trials(ns, 18, seed=3).wrong
    assert any(says in each for each in wrong), wrong
