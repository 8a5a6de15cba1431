"""Objects, log lines and messages that somebody else wrote: none ends a command, and none touches the line of another run."""

import contextlib
import copy
import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from job.texts import to_table, visible
from k8s import RunClient
from k8s.api import Api
from k8s.errors import ClientError, NotFoundError, ReplyError
from k8s.logs import PATIENCE_SECONDS, LogLine, _Reader
from k8s.shapes import Object, fit, parse_count, parse_message, parse_reply, parse_time
from k8s.tables import describe, resume_command
from k8s.tables import to_table as runs_to_table
from tests.k8s.objects import LABELS, template
from tests.k8s.server import ApiHandler, ApiServer, matches

T = TypeVar("T")

_RECORDED = Path(__file__).parent / "recorded"
_CASES = sorted(path.stem for path in _RECORDED.glob("*.json"))
_HOSTILE_TEXT = "\x1b]52;c;eA==\x07\x1b[31m\u202e\x9b31m\u200b\r\nmnist-k8s: error 0: all is well\u2028\x00; $(touch x)"


def put(cluster: ApiServer, case: str, change: Callable[[Any], object] | None = None) -> Any:
    """The recorded objects of a run, changed, in the cluster."""
    content = json.loads((_RECORDED / f"{case}.json").read_text())
    kinds = {"jobs": [content["job"]], "pods": content["pods"], "events": content["events"]}
    for resource, things in kinds.items():
        for number, thing in enumerate(things):
            metadata = thing.setdefault("metadata", {})
            metadata.setdefault("name", f"{case}-{number}")
            metadata |= {"uid": f"{case}-{resource}-{number}", "labels": {**metadata.get("labels", {}), **LABELS}}
    if change:
        change(content)
    for resource, things in kinds.items():
        for number, thing in enumerate(things):
            cluster.objects.setdefault(resource, {})[f"{case}-{number}"] = thing
    return content


def _message(text: str) -> Callable[[Any], object]:
    def change(content: Any) -> None:
        content["pods"][-1]["status"]["containerStatuses"][0]["state"]["terminated"]["message"] = text

    return change


def _annotate(resource: str, **values: Any) -> Callable[[Any], object]:
    def change(content: Any) -> None:
        things = [content["job"]] if resource == "job" else content["pods"]
        for thing in things:
            thing["metadata"].setdefault("annotations", {}).update(
                {key.replace("__", "/"): values[key] for key in values}
            )

    return change


def _index(content: Any) -> None:
    for pod in content["pods"]:
        pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] = "\u00b2"


def _epochs(content: Any) -> None:
    content["job"]["spec"]["template"]["spec"]["containers"][0]["args"].append("--train.epochs=\u00b2")


_TYPES = (
    '{"event": "epoch.end", "step": {}, "epoch": "x", "accuracy": "high", "val_accuracy": 1e308, "eta_seconds": "soon"}'
)
_CHANGES: dict[str, tuple[str, Callable[[Any], object]]] = {
    "a message of 100,000 [": ("exit-42", _message("[" * 100_000)),
    "a message of 10 MB": ("exit-42", _message('{"reason": "' + "x" * 10**7 + '"}')),
    "a message of wrong types": ("exit-42", _message('{"step": "x", "epoch": [1], "accuracy": "high", "reason": {}}')),
    "a number of 5,000 digits": ("exit-42", _message('{"step": ' + "9" * 5000 + "}")),
    "a count that is none": (
        "workers-running",
        _annotate("pods", **{"batch.kubernetes.io__job-index-failure-count": "x"}),
    ),
    "an index that is no digit": ("workers-running", _index),
    "epochs that are no digit": ("running", _epochs),
    "annotations of a wrong shape": ("running", lambda c: c["pods"][0]["metadata"].update(annotations=[1])),
    "a Job without containers": ("running", lambda c: c["job"]["spec"]["template"]["spec"].update(containers=None)),
    "a Job without a template": ("running", lambda c: c["job"]["spec"].pop("template")),
    "a pod without status": ("running", lambda c: c["pods"][0].update(status=None)),
    "a pod without labels": ("running", lambda c: c["pods"][0]["metadata"].update(labels=None)),
    "a date without a zone": ("running", lambda c: c["job"]["metadata"].update(creationTimestamp="2026-11-24")),
    "a date that is a number": ("running", lambda c: c["job"]["metadata"].update(creationTimestamp=5)),
    "2,147,483,647 workers": ("workers-running", lambda c: c["job"]["spec"].update(completions=2**31 - 1)),
    "a name that is a path": ("running", lambda c: c["job"]["metadata"].update(name="../../../x")),
    "an event about nothing": ("quota", lambda c: [event.update(involvedObject=[]) for event in c["events"]]),
}


@pytest.mark.security("S5")
@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES.keys())
def test_one_bad_object_takes_no_line_of_another_run(
    client: RunClient, cluster: ApiServer, change: tuple[str, Callable[[Any], object]]
) -> None:
    healthy = put(cluster, "succeeded")["job"]["metadata"]["name"]
    put(cluster, *change)
    runs = client.list_runs()
    assert [run.phase for run in runs if run.job == healthy] == ["Succeeded"]
    for text in (runs_to_table(runs), *map(describe, runs)):
        assert text == visible(text, keep="\n")


@pytest.mark.security("S5")
@pytest.mark.parametrize("line", ["[" * 100_000, '{"event": []}', _TYPES, '{"event": NaN}', "x" * 3_000_000, "\udc9b"])
def test_no_log_line_ends_a_list(client: RunClient, cluster: ApiServer, line: str) -> None:
    pod = put(cluster, "running")["pods"][0]["metadata"]["name"]
    cluster.logs[pod] = [f"{line}\n".encode(errors="surrogateescape")]
    [run] = client.list_runs()
    assert (run.phase, run.accuracy, run.eta_seconds) == ("Running", None, None)


@pytest.mark.security("S5")
def test_a_log_without_an_end_does_not_hold_a_list_up(
    client: RunClient, cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k8s.progress._MAX_SECONDS", 0.3)
    put(cluster, "running")
    cluster.faults.append(_on_log(lambda: b"x" * 100, pause_seconds=0.1))
    started = time.monotonic()
    assert len(client.list_runs()) == 1
    assert time.monotonic() - started < 10


def _on_log(make: Callable[[], bytes], *, pause_seconds: float = 0.0) -> Callable[[ApiHandler], bool]:
    """A log that goes on for as long as somebody reads it."""

    def fault(handler: ApiHandler) -> bool:
        if "/log?" not in handler.path or "tailLines=1&" in handler.path:
            return False
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(make())
                time.sleep(pause_seconds)
        handler.close_connection = True
        return True

    return fault


@pytest.mark.security("S5")
def test_a_log_that_is_not_followed_ends_with_what_was_written_when_it_was_asked_for(
    client: RunClient, cluster: ApiServer
) -> None:
    """A container that writes faster than anybody reads has a log without an end."""
    content = put(cluster, "running")
    name, pod = content["job"]["metadata"]["name"], content["pods"][0]["metadata"]
    pod["labels"]["batch.kubernetes.io/job-name"] = name
    cluster.logs[pod["name"]] = [b"2026-11-24T03:00:02Z two\n"]
    numbers = iter(range(1, 10**9))
    cluster.faults.append(
        _on_log(lambda: f"2026-11-24T03:{(number := next(numbers)) // 60:02d}:{number % 60:02d}Z x\n".encode())
    )
    assert [line.text for line in client.logs(name)] == ["x", "x"]


@pytest.mark.security("S5")
def test_a_log_that_is_refused_again_and_again_ends_when_it_is_not_followed(
    client: RunClient, cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = put(cluster, "succeeded")
    name, pod = content["job"]["metadata"]["name"], content["pods"][0]["metadata"]
    pod["labels"]["batch.kubernetes.io/job-name"] = name
    assert PATIENCE_SECONDS < 600
    monkeypatch.setattr("k8s.logs.PATIENCE_SECONDS", 0.5)

    def refuse(handler: ApiHandler) -> bool:
        if "/log?" in handler.path:
            handler.fail(400, "container train is not valid")
        return "/log?" in handler.path

    cluster.faults += [refuse] * 100
    with pytest.raises(ClientError, match="container train is not valid"):
        list(client.logs(name))


@pytest.mark.security("S5")
def test_a_line_without_an_end_is_handed_on_in_parts_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k8s.logs._MAX_LINE_BYTES", 64)
    from k8s.logs import _cut

    stamp = b"2026-11-24T03:00:01.000000000Z "
    line = stamp + bytes(range(128, 256)) + b"\xff\r\n"
    reader = _Reader("p")
    first = [item.data for item in reader.take(list(_cut(line))[:2])]
    again = [item.data for item in reader.take([*_cut(line), stamp + b"next\n"])]
    assert b"".join([*first, *again]) == line.removeprefix(stamp) + b"next\n"


@pytest.mark.security("S5")
def test_depth_that_the_api_server_lets_through_counts_as_not_there() -> None:
    """It takes `managedFields` of any depth from whoever may make a Job."""
    deep = '{"f:a":' * 900 + "{}" + "}" * 900
    reply = f'{{"items": [{{"metadata": {{"name": "a", "managedFields": [{deep}]}}, "x": "]}}\\""}}, {{"b": 1}}]}}'
    first, second = parse_reply(reply.encode(), max_bytes=10**6)["items"]
    assert (first["metadata"]["name"], first["x"], second) == ("a", ']}"', {"b": 1})


@pytest.mark.security("S5")
def test_a_reply_without_an_end_is_refused(
    client: RunClient, cluster: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k8s.api._MAX_REPLY_BYTES", 1000)

    def answer(handler: ApiHandler) -> bool:
        handler.reply(200, b'{"items": [' + b" " * 2000)
        return True

    cluster.faults.append(answer)
    with pytest.raises(ReplyError, match="the reply is longer than"):
        client.list_runs()


@pytest.mark.parametrize("text", ["", "x", "2026", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59-12:00", "9" * 5000])
def test_a_time_that_is_none(text: str) -> None:
    assert parse_time(text) is None


@pytest.mark.parametrize("text", ["", "-1", "\u00b2", "\u0663", "1e3", "9" * 10, " 1"])
def test_a_count_that_is_none(text: str) -> None:
    assert parse_count(text) is None


def test_fields_that_are_not_read_stay_as_they_are() -> None:
    job: Object = template()["spec"]["jobTemplate"] | {"metadata": {"name": "x", "uid": "u", "new": [None, {"a": 1.5}]}}
    assert fit("jobs", job) == job
    assert parse_message('{"event": "x", "own": 1}') == {"event": "x"}


@pytest.mark.security("S11")
def test_nothing_in_a_run_steers_a_terminal(client: RunClient, cluster: ApiServer) -> None:
    def change(content: Any) -> None:
        _annotate("job", **{"mnist-train__set": _HOSTILE_TEXT})(content)
        content["job"]["spec"]["template"]["spec"]["containers"][0]["args"].append(f"--run.id={_HOSTILE_TEXT}")
        _message(json.dumps({"reason": _HOSTILE_TEXT, "commit": _HOSTILE_TEXT, "outcome": _HOSTILE_TEXT}))(content)

    put(cluster, "exit-42", change)
    [run] = client.list_runs()
    for text in (runs_to_table([run]), describe(run)):
        assert text == visible(text, keep="\n")
        assert "\\u001b" in text
        assert "\nmnist-k8s: error 0" not in text
    assert json.loads(json.dumps(run.to_dict()))["run"] == _HOSTILE_TEXT
    with pytest.raises(NotFoundError) as caught:
        client.status(run.run + "x")
    for command in (resume_command(run), str(caught.value)):
        assert command == visible(command)
        assert "; $(touch x)'" in command, "a shell takes the name as one word"


def test_columns_are_aligned_by_what_is_seen() -> None:
    rows = [("RUN", "X"), ("a\u202eb", "x"), ("\u6570\u5b57", "x"), ("e\u0301", "x"), ("y" * 5000, "x")]
    lines = to_table(rows).splitlines()
    assert lines[1].startswith("a\\u202eb  ")
    assert [len(line) for line in lines[:4]] == [204, 204, 202, 205]
    assert lines[4] == "..." + "y" * 197 + "   x"


_ODD = st.sampled_from(
    [
        None,
        True,
        -1,
        2**31,
        2**63,
        1e308,
        "",
        "\u00b2",
        "x" * 500,
        _HOSTILE_TEXT,
        [],
        {},
        [None],
        {"a": None},
        "[" * 2000,
    ]
)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in an object."""
    items = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, child in items:
        yield value, key
        yield from _places(child)


def _mutate(content: Any, odd: Any, chance: random.Random) -> None:
    """Take something away, put something odd in its place, nest it, or repeat it."""
    container, key = chance.choice(list(_places({part: content[part] for part in ("job", "pods", "events")})))
    match chance.randrange(4):
        case 0:
            del container[key]
        case 1:
            container[key] = odd
        case 2:
            container[key] = [container[key]]
        case _:
            container[key] = {"x": container[key]}


class _AtHand(Api):
    """The same replies without HTTP, for thousands of them."""

    def __init__(self, state: ApiServer) -> None:
        self.namespace = "ml"
        self._state = state

    def _send(self, method: str, resource: str, name: str = "", **more: Any) -> Object:
        things = self._state.get(resource)
        found = [
            thing for thing in things if matches(thing, more.get("query") or {"fieldSelector": f"metadata.name={name}"})
        ]
        if name and not found:
            raise NotFoundError(name)
        return parse_reply(json.dumps(found[0] if name else {"items": found}).encode(), max_bytes=10**8)

    def persist(self, request: Callable[[], T]) -> T:
        return request()

    @contextlib.contextmanager
    def stream(
        self, resource: str, name: str = "", *, query: Mapping[str, str], silence_seconds: float
    ) -> Iterator[Iterator[bytes]]:
        yield iter(self._state.logs.get(name, []))


@pytest.mark.security("S5")
@pytest.mark.security("S11")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.full) for part in range(1, 5))])
def test_mutated_objects_end_nothing(is_full: bool, part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded objects, mutated, beside a healthy run: list, status, wait and logs give an answer or an error of ours.

    In the full run 2,500 in five parts, which are tested side by side.
    """
    monkeypatch.setattr("k8s.logs.PATIENCE_SECONDS", 0.0)
    num_cases = 0
    state = ApiServer()
    client = RunClient(_AtHand(state))

    @seed(part)
    @settings(max_examples=500 if is_full else 200, database=None, suppress_health_check=list(HealthCheck))
    @given(
        case=st.sampled_from(_CASES), odd=st.lists(_ODD, min_size=1, max_size=4), line=_ODD, seed=st.integers(0, 2**32)
    )
    def check(case: str, odd: list[Any], line: Any, seed: int) -> None:
        nonlocal num_cases
        num_cases += 1
        chance = random.Random(seed)
        state.objects.clear()
        state.requests.clear()
        healthy = put(state, "succeeded")["job"]["metadata"]["name"]
        content = put(state, case)
        if case == "succeeded":
            return
        name = content["job"]["metadata"]["name"]
        state.logs = {
            pod["metadata"]["name"]: [f"2026-11-24T03:00:02Z {json.dumps(line)}\n".encode()] for pod in content["pods"]
        }
        for each in odd:
            _mutate(content, copy.deepcopy(each), chance)  # else one may get into itself
        runs = client.list_runs()
        assert [run.phase for run in runs if run.job == healthy] == ["Succeeded"]
        for text in (runs_to_table(runs), *map(describe, runs), *map(resume_command, runs)):
            assert text == visible(text, keep="\n")
        json.dumps([run.to_dict() for run in runs], allow_nan=False)
        for ask in (
            client.status,
            lambda run: client.wait(run, timeout_seconds=0.0),
            lambda run: list(client.logs(run)),
        ):
            with contextlib.suppress(ClientError):
                ask(name)

    check()
    print(f"{num_cases} mutated runs: no traceback, and the healthy run has its line")
    assert num_cases >= 200


def test_a_log_line_has_the_bytes_that_were_written() -> None:
    [line] = _Reader("p").take([b"2026-11-24T03:00:01Z \xff\x9b\r \n"])
    assert (line.data, line) == (b"\xff\x9b\r \n", LogLine(pod="p", text="\ufffd\ufffd\r "))
