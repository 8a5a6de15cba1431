"""Submitting, finding and cancelling over real HTTP, with replies that are lost: nothing is made twice, nobody waits for ever."""

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from job.contract import ORIGIN_VARIABLE
from k8s import RunClient
from k8s.cli import parse_command_line
from k8s.connection import connect
from k8s.errors import (
    ClientError,
    ConflictError,
    DeadlineError,
    ForbiddenError,
    NotFoundError,
    RefusedError,
    UnauthenticatedError,
    UnavailableError,
    UsageError,
    error_from_reply,
)
from k8s.runs import JOB_NAME_LABEL
from k8s.shapes import Object
from k8s.tables import resume_command
from k8s.workers import INDEX_LABEL
from tests.conftest import REPOSITORY
from tests.k8s.objects import LABELS, end, template
from tests.k8s.server import ApiHandler, ApiServer


def arguments(job: Object) -> list[str]:
    found: list[str] = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return found


def test_a_submitted_run_is_the_releases_with_other_settings(client: RunClient, cluster: ApiServer) -> None:
    status = client.submit(["train.learning_rate=0.5", "data.uri=$HOME"])
    [job] = cluster.get("jobs")
    assert status.run == f"ml.{status.job}"
    assert (status.phase, status.settings) == ("Pending", "train.learning_rate=0.5, data.uri=$HOME")
    assert arguments(job)[-3:] == ["--train.learning_rate=0.5", "--data.uri=$$HOME", "--promotion.enabled=false"]
    [owner] = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("CronJob", "train", False)
    assert job["metadata"]["labels"].items() >= LABELS.items()
    assert job["metadata"]["name"].startswith("train-")


def _origin(job: Object) -> list[str]:
    variables = job["spec"]["template"]["spec"]["containers"][0]["env"]
    return [variable["value"] for variable in variables if variable["name"] == ORIGIN_VARIABLE]


@pytest.mark.parametrize("env", [[], [{"name": "A", "value": "$(B)"}, {"name": ORIGIN_VARIABLE, "value": "schedule"}]])
def test_a_run_by_hand_does_not_stand_for_the_schedule(
    env: list[Object], client: RunClient, cluster: ApiServer
) -> None:
    """Also in a release of an older chart, whose pods do not say who started them."""
    container = cluster.get("cronjobs")[0]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    container["env"] = env
    submitted = client.submit(["train.epochs=9"], promote=True)
    [job] = cluster.get("jobs")
    assert _origin(job) == ["manual"]
    assert container["env"] == env
    end(job, kind="Failed", reason="BackoffLimitExceeded")
    client.resume(submitted.run)
    assert [_origin(job) for job in cluster.get("jobs")] == [["manual"], ["manual"]]


@pytest.mark.parametrize(
    ("env", "managed_by"), [([], "Helm"), ([{"name": ORIGIN_VARIABLE, "value": "schedule"}], "mnist-k8s")]
)
def test_a_run_of_the_schedule_stays_one_when_it_is_resumed(
    env: list[Object], managed_by: str, client: RunClient, cluster: ApiServer
) -> None:
    run = client.trigger().run
    [job] = cluster.get("jobs")
    job["spec"]["template"]["spec"]["containers"][0]["env"] = env
    job["metadata"]["labels"]["app.kubernetes.io/managed-by"] = managed_by
    end(job, kind="Failed", reason="BackoffLimitExceeded")
    client.resume(run)
    assert _origin(cluster.get("jobs")[1]) == ["schedule"]


def test_promotion_is_left_to_the_release_when_asked(client: RunClient, cluster: ApiServer) -> None:
    client.submit([], promote=True)
    assert not any("promotion" in argument for argument in arguments(cluster.get("jobs")[0]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("train.epochz=3", r"train\.epochz.*train\.epochs"),
        ("train.epochs=none", r"train\.epochs"),
        ("store.uri=s3://b/one\ntwo", r"store\.uri: must be one line"),
        ("model.args={a: one\n two}", r"model\.args: .*a text goes on in the next line"),
        ("store.uri=file:/tmp/x", r"store\.uri: must not be a folder inside the pod"),
        ("checkpoint.final_save_seconds=55", r"terminationGracePeriodSeconds \(60\)"),
    ],
)
def test_what_the_job_would_refuse_is_refused_before_anything_is_sent(
    client: RunClient, cluster: ApiServer, setting: str, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        client.submit([setting])
    assert {method for method, _ in cluster.requests} == {"GET"}


def test_gpus_of_any_maker_are_what_a_run_of_the_release_expects(client: RunClient, cluster: ApiServer) -> None:
    for name in ("nvidia.com/gpu", "nvidia.com/mig-1g.5gb", "amd.com/gpu", "gpu.intel.com/i915", "gpu.intel.com/xe"):
        cronjob = template()
        cronjob["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["resources"] = {
            "limits": {name: "2"}
        }
        cluster.objects["cronjobs"].clear()
        cluster.add("cronjobs", cronjob)
        with pytest.raises(UsageError, match=rf"must equal the limit {name} \(2\) of the release; leave it out"):
            client.submit(["cluster.expected_gpus=1"])
        assert client.submit(["cluster.expected_gpus=2"]).run


@pytest.fixture
def two_workers(cluster: ApiServer) -> ApiServer:
    """A cluster with a release of two workers."""
    cluster.objects["cronjobs"].clear()
    cluster.add("cronjobs", template(workers=2))
    return cluster


def test_jobs_of_several_workers_are_the_charts(client: RunClient, two_workers: ApiServer) -> None:
    run = client.submit(["cluster.workers=2", "cluster.cpu_replicas=2"]).run
    end(two_workers.get("jobs")[0], kind="Failed", reason="MaxFailedIndexesExceeded")
    client.resume(run)
    client.trigger()
    wanted = template(workers=2)["spec"]["jobTemplate"]["spec"]
    made = [job["spec"] for job in two_workers.get("jobs")]
    assert len(made) == 3
    for spec in made:
        assert {key: spec[key] for key in spec if key != "template"} == {
            key: wanted[key] for key in wanted if key != "template"
        }
        assert spec["template"]["spec"]["subdomain"] == "train-workers"
        assert spec["template"]["spec"]["containers"][0]["env"][0]["value"] == "$(JOB_NAME)-0.train-workers:2222"


@pytest.mark.parametrize(("made", "wanted"), [(1, 2), (2, 1), (2, 3)])
def test_other_workers_than_the_releases_are_refused_with_the_way_out(
    client: RunClient, cluster: ApiServer, made: int, wanted: int
) -> None:
    cluster.objects["cronjobs"].clear()
    cluster.add("cronjobs", template(workers=made))
    upgrade = rf"helm upgrade --reset-then-reuse-values --set cluster\.workers={wanted}: the chart"
    words = rf"the release \({made}\), received {wanted}; use {upgrade}"
    with pytest.raises(UsageError, match=words):
        client.submit([f"cluster.workers={wanted}"])
    assert not cluster.get("jobs")


def test_a_run_is_resumed_with_the_workers_that_the_release_has_now(client: RunClient, two_workers: ApiServer) -> None:
    run = client.submit([]).run
    end(two_workers.get("jobs")[0], kind="Failed", reason="MaxFailedIndexesExceeded")
    two_workers.objects["cronjobs"].clear()
    two_workers.add("cronjobs", template())
    with pytest.raises(UsageError, match=r"must equal the number of workers of the release \(1\), received 2"):
        client.resume(run)
    client.resume(run, ["cluster.workers=1", "cluster.cpu_replicas=2"])
    assert "completions" not in two_workers.get("jobs")[-1]["spec"]


def test_a_jobs_name_leaves_room_for_the_workers_index(client: RunClient, cluster: ApiServer) -> None:
    cluster.objects["cronjobs"].clear()
    cluster.add("cronjobs", template(name="x" * 60, workers=11))
    assert len(client.submit([]).job) == 63 - len("-10")
    with pytest.raises(UsageError, match="at most 60"):
        client.submit([], name="y" * 61)


def test_several_workers_are_cancelled_when_all_have_ended(client: RunClient, two_workers: ApiServer) -> None:
    status = client.submit([])
    labels = {JOB_NAME_LABEL: status.job}
    for index in ("0", "1"):
        pod = {"name": f"{status.job}-{index}", "labels": labels | {INDEX_LABEL: index}}
        phase = "Failed" if index == "0" else "Running"
        two_workers.add("pods", {"metadata": pod, "status": {"phase": phase}})
    two_workers.get("jobs")[0]["status"] = {"conditions": [{"type": "Suspended", "status": "True"}]}
    with pytest.raises(DeadlineError):
        client.cancel(status.run, timeout_seconds=0.5)
    two_workers.get("pods")[1]["status"]["phase"] = "Failed"
    client.cancel(status.run, timeout_seconds=5)
    assert not two_workers.get("jobs")


def test_events_of_many_workers_are_asked_for_at_once(client: RunClient, cluster: ApiServer) -> None:
    cluster.objects["cronjobs"].clear()
    cluster.add("cronjobs", template(workers=12))
    job = client.submit([]).job
    for index in range(12):
        pod = {"name": f"{job}-{index}-x", "labels": {JOB_NAME_LABEL: job, INDEX_LABEL: str(index)}}
        cluster.add("pods", {"metadata": pod, "spec": {}, "status": {"phase": "Pending"}})
    trouble = {"type": "Warning", "reason": "FailedMount", "message": "no volume", "metadata": {"name": "e"}}
    cluster.add("events", trouble | {"involvedObject": {"kind": "Pod", "name": f"{job}-7-x"}})
    num_before = len(cluster.requests)
    status = client.status(job)
    assert (status.reason, status.message) == (
        "FailedMount",
        "worker 7 is Pending and the others wait for it: no volume",
    )
    assert len(cluster.requests) - num_before <= 3


def _lose_reply(handler: ApiHandler) -> bool:
    if handler.command != "POST":
        return False
    handler.serve(is_silent=True)
    return True


def _lose_request(handler: ApiHandler) -> bool:
    if handler.command != "POST":
        return False
    handler.drop()
    return True


def _fail_with(status: int) -> Any:
    def fault(handler: ApiHandler) -> bool:
        handler.fail(status, "as told", {"Retry-After": "0.1"})
        return True

    return fault


@pytest.mark.parametrize("num_lost", [1, 3])
@pytest.mark.parametrize("lose", [_lose_reply, _lose_request])
def test_a_lost_reply_makes_no_second_job(client: RunClient, cluster: ApiServer, lose: Any, num_lost: int) -> None:
    cluster.faults += [lose] * num_lost
    status = client.submit([])
    assert [job["metadata"]["name"] for job in cluster.get("jobs")] == [status.job]
    assert not cluster.faults


@pytest.mark.parametrize("code", [429, 500, 503])
def test_a_server_that_is_busy_is_asked_again(client: RunClient, cluster: ApiServer, code: int) -> None:
    cluster.faults += [_fail_with(code), _fail_with(code)]
    client.submit([])
    assert len(cluster.get("jobs")) == 1


def test_a_name_that_is_taken_by_another_job_is_refused(client: RunClient, cluster: ApiServer) -> None:
    client.submit([], name="mine")
    with pytest.raises(ConflictError, match="the Job mine exists, and is another one"):
        client.submit([], name="mine")
    assert len(cluster.get("jobs")) == 1


def test_trigger_starts_what_the_schedule_would(client: RunClient, cluster: ApiServer) -> None:
    client.trigger()
    assert arguments(cluster.get("jobs")[0]) == arguments(template()["spec"]["jobTemplate"])
    cluster.get("cronjobs")[0]["status"] = {"active": [{"name": "train-1"}]}
    with pytest.raises(ConflictError, match="train-1 goes on, and concurrencyPolicy is Forbid"):
        client.trigger()


def test_a_release_without_a_schedule_cannot_be_triggered(client: RunClient, cluster: ApiServer) -> None:
    cluster.get("cronjobs")[0]["spec"]["schedule"] = "0 0 31 2 *"
    with pytest.raises(UsageError, match="has no schedule to trigger"):
        client.trigger()


def test_which_release_is_meant_must_be_clear(client: RunClient, cluster: ApiServer) -> None:
    cluster.add("cronjobs", template(name="other", release="other"))
    with pytest.raises(UsageError, match="one of the releases in namespace ml: other, train"):
        client.submit([])
    cluster.objects["cronjobs"].clear()
    with pytest.raises(NotFoundError, match="no CronJob of any release"):
        client.submit([])


def test_wait_ends_with_the_job_and_at_its_deadline(client: RunClient, cluster: ApiServer) -> None:
    status = client.submit([])
    started = time.monotonic()
    with pytest.raises(DeadlineError):
        client.wait(status.job, timeout_seconds=0.5)
    assert time.monotonic() - started < 5
    end(cluster.get("jobs")[0])
    assert client.wait(status.run, timeout_seconds=5).phase == "Succeeded"


def test_a_name_that_is_nearly_right_is_told(client: RunClient, cluster: ApiServer) -> None:
    client.submit([], name="train-abc")
    with pytest.raises(NotFoundError, match=r"run train-abd: no Job of it in namespace ml; did you mean .*train-abc\?"):
        client.status("train-abd")


def test_a_name_like_no_other_is_told_where_to_look(client: RunClient) -> None:
    with pytest.raises(
        NotFoundError, match=r"namespace ml; mnist-k8s list shows all\. What it stored: mnist-job logs nothing"
    ):
        client.status("nothing")


def test_cancel_suspends_waits_and_deletes(client: RunClient, cluster: ApiServer) -> None:
    status = client.submit([])
    job = cluster.get("jobs")[0]
    job["status"] = {"conditions": [{"type": "Suspended", "status": "True"}]}
    client.cancel(status.run, timeout_seconds=5)
    assert not cluster.get("jobs")
    methods = [method for method, _ in cluster.requests if method in ("PATCH", "DELETE")]
    assert methods == ["PATCH", "DELETE"]


def test_what_cancel_says_goes_on_with_the_settings_of_the_cancelled_run(client: RunClient, cluster: ApiServer) -> None:
    run = client.submit(["train.epochs=9", "model.hidden_units=[8, 16]"]).run
    cluster.get("jobs")[0]["status"] = {"conditions": [{"type": "Suspended", "status": "True"}]}
    command = shlex.split(resume_command(client.cancel(run, timeout_seconds=5)))
    assert command[:3] == ["mnist-k8s", "resume", run]
    options = parse_command_line(command[1:])
    client.resume(options.run, options.settings)
    [job] = cluster.get("jobs")
    assert {"--train.epochs=9", "--model.hidden_units=[8, 16]", f"--run.id={run}"} <= set(arguments(job))
    assert arguments(job)[-1] == "--promotion.enabled=false"


@pytest.mark.parametrize("submitted", [("--promote",), ("--set=promotion.enabled=true",)])
def test_a_run_that_could_become_the_champion_still_can_when_it_goes_on(
    submitted: tuple[str, ...], client: RunClient, cluster: ApiServer
) -> None:
    options = parse_command_line(["submit", *submitted])
    run = client.submit(options.settings, promote=options.promote).run
    cluster.get("jobs")[0]["status"] = {"conditions": [{"type": "Suspended", "status": "True"}]}
    command = shlex.split(resume_command(client.cancel(run, timeout_seconds=5)))
    options = parse_command_line(command[1:])
    assert list(options.settings) == ["promotion.enabled=true"]
    client.resume(options.run, options.settings)
    [job] = cluster.get("jobs")
    assert "--promotion.enabled=false" not in arguments(job)


def test_a_run_that_has_ended_is_not_cancelled(client: RunClient, cluster: ApiServer) -> None:
    status = client.submit([])
    end(cluster.get("jobs")[0])
    assert client.cancel(status.run, timeout_seconds=5).phase == "Succeeded"
    assert len(cluster.get("jobs")) == 1


def test_resume_makes_a_new_job_for_the_old_run_with_its_settings(client: RunClient, cluster: ApiServer) -> None:
    first = client.submit(["train.epochs=9"])
    with pytest.raises(ConflictError, match="goes on"):
        client.resume(first.run)
    end(cluster.get("jobs")[0], kind="Failed", reason="BackoffLimitExceeded")
    again = client.resume(first.run)
    assert (again.run, again.job != first.job) == (first.run, True)
    made = next(job for job in cluster.get("jobs") if job["metadata"]["name"] == again.job)
    assert "--train.epochs=9" in arguments(made)


def test_two_who_resume_one_run_make_one_job(client: RunClient, cluster: ApiServer) -> None:
    run = client.submit([]).run
    end(cluster.get("jobs")[0], kind="Failed", reason="BackoffLimitExceeded")

    def resume_beside(handler: ApiHandler) -> bool:
        """A rival is quicker, between this one's look and its POST."""
        if handler.command != "POST":
            return False
        cluster.faults.clear()
        client.resume(run)
        handler.serve()
        cluster.faults.append(resume_beside)
        return True

    cluster.faults.append(resume_beside)
    with pytest.raises(ConflictError, match=rf"run {run} was resumed by somebody else just now, in the Job train-"):
        client.resume(run)
    assert len(cluster.get("jobs")) == 2


def test_list_counts_evicted_pods_as_status_does(client: RunClient, cluster: ApiServer) -> None:
    job = client.submit([]).job
    made = {"reason": "SuccessfulCreate", "message": f"Created pod: {job}-aaaaa"}
    about = {"involvedObject": {"kind": "Job", "name": job}, "metadata": {"name": "e1"}}
    cluster.add("events", made | about)
    cluster.add("events", made | about | {"message": f"Created pod: {job}-bbbbb", "metadata": {"name": "e2"}})
    end(cluster.get("jobs")[0])
    assert [run.attempts for run in client.list_runs()] == [client.status(job).attempts] == [2]


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (400, RefusedError, "correct what it names"),
        (401, UnauthenticatedError, "log in again"),
        (403, ForbiddenError, "clientRole.create=true"),
        (404, NotFoundError, "mnist-k8s list"),
        (409, ConflictError, "mnist-k8s list"),
        (422, RefusedError, "correct what it names"),
        (429, UnavailableError, "try again later"),
        (500, UnavailableError, "try again later"),
        (418, ClientError, "see what the API server says"),
    ],
)
def test_every_status_is_a_typed_error_that_says_what_to_do(status: int, kind: type[ClientError], words: str) -> None:
    error = error_from_reply(status=status, body=b'{"message": "no\\nreason"}', what="get jobs x", namespace="ml")
    assert isinstance(error, kind)
    assert f"get jobs x in namespace ml: {status}: no reason; " in str(error)
    assert words in str(error)


def run_cli(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in ("KUBECONFIG",)}
    return subprocess.run(
        [sys.executable, "-m", "k8s", *arguments],
        env=inherited | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_missing_cluster_is_one_line(tmp_path: Path) -> None:
    nowhere = run_cli("list", HOME=str(tmp_path))
    assert nowhere.returncode == 64
    assert nowhere.stderr.startswith("mnist-k8s: error 64: no cluster is configured")
    unknown = run_cli("list", "--kubeconfig=/no/such/file")
    assert unknown.returncode == 64
    assert unknown.stderr.startswith("mnist-k8s: error 64: kubeconfig /no/such/file: there is no such file; give")
    assert len(unknown.stderr.splitlines()) == 1
    assert run_cli("lisst").returncode == 64


@pytest.mark.parametrize("arguments", ["--help", "--version", "list --help"])
@pytest.mark.parametrize(
    ("redirection", "code"),
    [(">/dev/full", 69), (">&-", 69), (">&- 2>&-", 69), (">/dev/full 2>/dev/full", 69), ("| true", 0), ("2>&-", 0)],
)
def test_output_that_is_lost_is_no_traceback(arguments: str, redirection: str, code: int) -> None:
    command = f"{sys.executable} -m k8s {arguments} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == (1 if code and "2>" not in redirection else 0)


KUBECONFIG = """\
contexts: [{name: here, context: {cluster: c, namespace: ml}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]
users: []
"""


@pytest.mark.parametrize("current", ["", 'current-context: ""\n', "current-context: gone\n"])
def test_context_that_is_named_needs_no_current_context(current: str, tmp_path: Path) -> None:
    file = tmp_path / "config"
    file.write_text(KUBECONFIG + current)
    connection = connect(kubeconfig=str(file), context="here")
    assert (connection.namespace, connection.client.configuration.host) == ("ml", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"kubeconfig .*; give --kubeconfig and --context"):
        connect(kubeconfig=str(file))


def test_a_kubeconfig_that_does_not_exist_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone, there = tmp_path / "gone", tmp_path / "there"
    with pytest.raises(UsageError, match=rf"^kubeconfig {gone}:{gone}2: there is no such file; give"):
        connect(kubeconfig=f"{gone}:{gone}2")
    there.write_text(KUBECONFIG)
    assert connect(kubeconfig=f"{gone}:{there}", context="here").namespace == "ml"
    monkeypatch.setenv("KUBECONFIG", str(gone))
    with pytest.raises(UsageError, match=rf"^kubeconfig {gone}: there is no such file; give"):
        connect(context="here")
    monkeypatch.delenv("KUBECONFIG")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"^kubeconfig ~/\.kube/config: there is no such file; give"):
        connect(context="here")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("submit --train.epochs=3", "did you mean --set train.epochs=3?"),
        ("submit --train.epochs 3 --wait", "did you mean --set train.epochs=3?"),
        ("submit --train.epochs --wait", "did you mean --set train.epochs=VALUE?"),
        ("submit train.epochs=3", "did you mean --set train.epochs=3?"),
        ("submit --epochs=3 --lr=0.5", "did you mean --set train.epochs=3 --set train.learning_rate=0.5?"),
        ("resume ml.x --train.epochz=3", "did you mean --set train.epochs=3?"),
        ("submit '--data.uri=a b'", "did you mean --set 'data.uri=a b'?"),
        ("submit --set epochs=3", "received 'epochs=3'; did you mean train.epochs=3?"),
        ("submit --set lr=0.5", "received 'lr=0.5'; did you mean train.learning_rate=0.5?"),
        ("submit --set=--train.epochs=3", "received '--train.epochs=3'; did you mean train.epochs=3?"),
    ],
)
def test_a_setting_that_is_given_wrongly_is_told_how_to_give_it(line: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command_line(shlex.split(line))
    assert f"{hint}; see mnist-k8s {line.partition(' ')[0]} --help" in str(caught.value)


@pytest.mark.parametrize(
    "line",
    ["submit --no-such-thing", "submit --set nothing", "list --train.epochs=3", "submit x", "wait x --timeout=1e300"],
)
def test_what_is_like_no_setting_or_takes_none_gets_no_hint(line: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command_line(shlex.split(line))
    assert "did you mean" not in str(caught.value)


def test_help_imports_neither_kubernetes_nor_tensorflow() -> None:
    names = ("kubernetes", "tensorflow", "pydantic", "yaml")
    script = f"import sys, k8s.cli; k8s.cli._make_parser(); print([name for name in {names} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
