"""Waiting and following over connections that break: a watch decides nothing, and every line comes once."""

import json
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from job.contract import ExitCode
from k8s import RunClient
from k8s.errors import DeadlineError, NotStartedError, UsageError
from k8s.logs import LogLine, Notice, _Reader
from k8s.runs import JOB_NAME_LABEL
from k8s.shapes import Object
from k8s.workers import INDEX_LABEL
from tests.k8s.objects import end, template
from tests.k8s.server import ApiHandler, ApiServer

Answer = Callable[[ApiHandler], object]

_EXPIRED = {"type": "ERROR", "object": {"kind": "Status", "status": "Failure", "code": 410, "message": "too old"}}
_ANSWERS: dict[str, Answer] = {
    "410": lambda handler: handler.fail(410, "too old resource version"),
    "410 as an event": lambda handler: handler.reply(200, json.dumps(_EXPIRED).encode() + b"\n"),
    "end at once": lambda handler: handler.reply(200, b""),
    "no JSON": lambda handler: handler.reply(200, b"<html>gateway</html>\n"),
    "half an event": lambda handler: handler.send_half(b'{"type": "MODI'),
    "dropped": lambda handler: handler.drop(),
    "silence": lambda handler: time.sleep(3.0),
    "DELETED": lambda handler: handler.reply(200, b'{"type": "DELETED", "object": {"kind": "Job"}}\n'),
}


def _on(part: str, answer: Answer) -> Callable[[ApiHandler], bool]:
    def fault(handler: ApiHandler) -> bool:
        if part not in handler.path:
            return False
        answer(handler)
        return True

    return fault


@pytest.mark.parametrize("answer", _ANSWERS.values(), ids=_ANSWERS.keys())
def test_whatever_a_watch_says_the_list_decides(
    client: RunClient, cluster: ApiServer, monkeypatch: pytest.MonkeyPatch, answer: Answer
) -> None:
    monkeypatch.setattr("k8s.watch.SILENCE_SECONDS", 1.0)
    run = client.submit([]).run
    cluster.faults += [_on("watch=true", answer)] * 20
    started, num_before = time.monotonic(), len(cluster.requests)
    threading.Timer(1.5, end, [cluster.get("jobs")[0]]).start()
    assert client.wait(run, timeout_seconds=20).phase == "Succeeded"
    seconds = time.monotonic() - started
    assert 1.4 < seconds < 15
    lists = [path for method, path in cluster.requests[num_before:] if "/jobs?" in path and "watch" not in path]
    assert len(lists) <= 4 + seconds / 0.5


def _pod(job: str, *, name: str = "p", is_running: bool = False) -> Object:
    state = {"running": {"startedAt": "2026-11-24T03:00:00Z"}} if is_running else {"terminated": {"exitCode": 0}}
    return {
        "metadata": {"name": name, "labels": {JOB_NAME_LABEL: job}},
        "status": {"phase": "Succeeded", "containerStatuses": [{"name": "train", "state": state}]},
    }


def _stamped(number: int, text: str = "") -> str:
    return f"2026-11-24T03:00:{number:02d}.000000000Z {text or f'line {number}'}"


def _log(*numbers: int) -> bytes:
    return "".join(f"{_stamped(number)}\n" for number in numbers).encode()


@pytest.mark.parametrize("num_bytes", [0, 1, 31, 32, 40, 41, 42, 60, 81, 82, 110])
def test_connection_that_breaks_anywhere_costs_no_line_and_doubles_none(
    client: RunClient, cluster: ApiServer, num_bytes: int
) -> None:
    status = client.submit([])
    end(cluster.get("jobs")[0])
    cluster.add("pods", _pod(status.job))
    cluster.logs["p"] = [_log(1, 2, 3, 3, 4)]
    cluster.faults.append(_on("/log?", lambda handler: handler.send_half(_log(1, 2, 3, 3, 4)[:num_bytes])))
    told = [item.text for item in client.logs(status.run, follow=True) if isinstance(item, LogLine)]
    assert told == ["line 1", "line 2", "line 3", "line 3", "line 4"]
    assert not cluster.faults


@pytest.fixture
def two_workers(client: RunClient, cluster: ApiServer) -> Object:
    """The Job of a run of two workers that has ended, a pod of each, and their logs."""
    cluster.objects["cronjobs"].clear()
    cluster.add("cronjobs", template(workers=2))
    job = client.submit([]).job
    end(cluster.get("jobs")[0])
    for index in ("0", "1"):
        pod = _pod(job, name=f"p{index}")
        pod["metadata"]["labels"][INDEX_LABEL] = index
        cluster.add("pods", pod)
        cluster.logs[f"p{index}"] = [f"{_stamped(1, f'worker {index}')}\n".encode()]
    return cluster.get("jobs")[0]


@pytest.mark.parametrize("follow", [False, True])
def test_a_log_is_that_of_one_worker(client: RunClient, two_workers: Object, follow: bool) -> None:
    name = two_workers["metadata"]["name"]
    assert list(client.logs(name, follow=follow)) == [LogLine(pod="p0", text="worker 0")]
    assert list(client.logs(name, worker=1, follow=follow)) == [LogLine(pod="p1", text="worker 1")]


def test_the_log_of_another_worker_that_is_gone_is_not_in_the_store(
    client: RunClient, cluster: ApiServer, two_workers: Object
) -> None:
    name = two_workers["metadata"]["name"]
    cluster.objects["pods"].clear()
    [notice] = client.logs(name, worker=1)
    assert isinstance(notice, Notice)
    assert notice.text.startswith(f"no pod of worker 1 of {name} has a log now; the log of worker 1 goes with its pods")
    [chiefs] = client.logs(name)
    assert chiefs.text == f"no pod of {name} has a log now; what it stored: mnist-job logs ml.{name}"


@pytest.mark.parametrize("worker", [-1, 2])
def test_a_worker_that_is_not_there_is_refused_with_the_range(
    client: RunClient, two_workers: Object, worker: int
) -> None:
    with pytest.raises(UsageError, match=rf"--worker: of run ml\.train-\w+ must be 0 to 1, received {worker}"):
        next(client.logs(two_workers["metadata"]["name"], worker=worker))


def test_a_run_of_one_worker_has_worker_0_alone(client: RunClient, cluster: ApiServer) -> None:
    status = client.submit([])
    end(cluster.get("jobs")[0])
    cluster.add("pods", _pod(status.job))
    cluster.logs["p"] = [_log(1)]
    assert list(client.logs(status.run, worker=0)) == [LogLine(pod="p", text="line 1")]
    with pytest.raises(UsageError, match="must be 0, its only worker, received 1"):
        next(client.logs(status.run, worker=1))


_NO_NODE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}
_NO_IMAGE = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}}
_NOT_STARTED: dict[str, Object] = {
    "ImagePullBackOff": {"containerStatuses": [{"name": "train", "state": _NO_IMAGE}]},
    "Unschedulable": {"conditions": [_NO_NODE]},
    "FailedMount": {"containerStatuses": [{"name": "train", "state": {"waiting": {"reason": "ContainerCreating"}}}]},
}
_EVENT = {"type": "Warning", "reason": "FailedMount", "message": 'secret "s" not found', "metadata": {"name": "e"}}


def _add_pending_pod(cluster: ApiServer, job: str, reason: str) -> Object:
    """A pod that does not start, for that reason."""
    if reason == "FailedMount":
        cluster.add("events", _EVENT | {"involvedObject": {"kind": "Pod", "name": "p"}})
    metadata = {"name": "p", "labels": {JOB_NAME_LABEL: job}}
    return cluster.add(
        "pods", {"metadata": metadata, "spec": {}, "status": {"phase": "Pending"} | _NOT_STARTED[reason]}
    )


@pytest.mark.parametrize("reason", _NOT_STARTED)
def test_the_log_of_a_pod_that_has_not_started_is_refused_with_the_reason_that_status_shows(
    client: RunClient, cluster: ApiServer, reason: str
) -> None:
    job = client.submit([]).job
    _add_pending_pod(cluster, job, reason)
    status = client.status(job)
    assert (status.phase, status.reason) == ("Pending", reason)
    with pytest.raises(NotStartedError) as caught:
        list(client.logs(job))
    assert caught.value.code == ExitCode.UNAVAILABLE
    assert str(caught.value) == (
        f"the log of ml.{job}: pod p has not started: {reason}: {status.message}; {status.action}; "
        f"to wait for it: mnist-k8s logs -f ml.{job}"
    )


def test_a_run_without_a_pod_has_not_started_either(client: RunClient, cluster: ApiServer) -> None:
    job = client.submit([]).job
    with pytest.raises(NotStartedError, match=r"no pod has started: NoPod: no pod has been made yet; to wait for it"):
        list(client.logs(job))
    cluster.get("jobs")[0]["spec"]["suspend"] = True
    with pytest.raises(NotStartedError, match=r"no pod has started: Suspended: spec\.suspend is true; helm upgrade"):
        list(client.logs(job))


def test_the_log_of_a_worker_that_has_not_started_names_it(
    client: RunClient, cluster: ApiServer, two_workers: Object
) -> None:
    name = two_workers["metadata"]["name"]
    two_workers["status"] = {}
    cluster.get("pods")[0]["status"] = _pod(name, is_running=True)["status"] | {"phase": "Running"}
    cluster.get("pods")[1]["status"] = {"phase": "Pending"} | _NOT_STARTED["Unschedulable"]
    assert list(client.logs(name)) == [LogLine(pod="p0", text="worker 0")]
    words = rf"^the log of worker 1 of ml\.{name}: pod p1 has not started: Unschedulable: no node takes the pod: .*"
    with pytest.raises(NotStartedError, match=rf"{words}; to wait for it: mnist-k8s logs -f --worker 1 ml\.{name}$"):
        list(client.logs(name, worker=1))


def test_a_log_that_is_followed_waits_for_a_pod_that_has_not_started(client: RunClient, cluster: ApiServer) -> None:
    job = client.submit([]).job
    pod = _add_pending_pod(cluster, job, "ImagePullBackOff")
    with pytest.raises(DeadlineError, match="end of the log"):
        list(client.logs(job, follow=True, timeout_seconds=0.5))
    cluster.logs["p"] = [_log(1)]

    def start_and_end() -> None:
        pod["status"] = _pod(job)["status"]
        end(cluster.get("jobs")[0])

    threading.Timer(1.0, start_and_end).start()
    assert list(client.logs(job, follow=True, timeout_seconds=20)) == [LogLine(pod="p", text="line 1")]


def take(reader: _Reader, *lines: str) -> list[str]:
    return [line.text for line in reader.take(f"{line}\n".encode() for line in lines)]


class TestReader:
    def test_second_reading_of_the_last_seconds_adds_only_what_is_new(self) -> None:
        reader = _Reader("p")
        assert take(reader, _stamped(1), _stamped(8)) == ["line 1", "line 8"]
        assert reader.since() == "2026-11-24T03:00:03Z"
        assert take(reader, _stamped(8), _stamped(9)) == ["line 9"]
        assert take(reader, _stamped(8), _stamped(9)) == []

    def test_equal_lines_are_told_as_often_as_they_were_written(self) -> None:
        reader = _Reader("p")
        assert take(reader, _stamped(1, "x"), _stamped(1, "x")) == ["x", "x"]
        assert take(reader, _stamped(1, "x"), _stamped(1, "x"), _stamped(1, "x")) == ["x"]

    def test_stamps_out_of_order_are_read_again_and_not_missed(self) -> None:
        """stderr's line was stamped first and written last."""
        reader = _Reader("p")
        assert take(reader, _stamped(10, "out")) == ["out"]
        assert take(reader, _stamped(9, "err"), _stamped(10, "out")) == ["err"]
        assert take(reader, _stamped(9, "err"), _stamped(10, "out"), _stamped(11, "on")) == ["on"]

    def test_lines_without_text_and_with_blanks_stay_as_they_are(self) -> None:
        assert take(_Reader("p"), _stamped(1, " "), _stamped(2, "  two  \r"), "2026-11-24T03:00:03Z ") == [
            " ",
            "  two  \r",
            "",
        ]

    def test_what_is_long_ago_is_forgotten(self) -> None:
        reader = _Reader("p")

        def lines() -> Iterator[bytes]:
            yield from (
                f"2026-11-24T{hour:02d}:{minute:02d}:00Z x\n".encode() for hour in range(20) for minute in range(60)
            )

        assert len(list(reader.take(lines()))) == 1200
        assert len(reader.recent) == 1
