"""Runs whose store or network says no: the exit code, one line, and nothing lost."""

import http.server
import json
import os
import pty
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import QUICK, REPOSITORY, S3, Finished, RunJob, job_command, job_environment, skip_or_fail


def in_namespace(*setup: str) -> list[str]:
    """A command prefix that runs in own mount and network namespaces after some set-up; root only."""
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        skip_or_fail("own mount namespaces are not allowed here")
    return ["unshare", "--mount", "sh", "-ec", "; ".join((*setup, 'exec "$@"')), "sh"]


def test_missing_bucket_is_66(run_job: RunJob, s3: S3) -> None:
    flags = [flag.replace(s3.bucket, "no-such-bucket") for flag in s3.flags]
    done = run_job("run", *QUICK, *flags, env=s3.env)

    assert done.code == 66
    assert "the bucket does not exist" in done.error


def test_metric_that_no_run_of_the_reference_model_has_is_64_before_anything_is_trained(
    run_job: RunJob, tmp_path: Path
) -> None:
    done = run_job("run", *QUICK, "--promotion.metric=acuracy")

    assert done.code == 64
    assert (
        "promotion.metric: must be accuracy, top_K_accuracy, auc or f1_macro without model.build, received 'acuracy'"
        in done.error
    )
    assert not (tmp_path / "out").exists()


def test_dead_endpoint_is_69_within_the_deadline(run_job: RunJob, s3: S3, dead_port: int) -> None:
    started = time.monotonic()
    done = run_job(
        "run",
        *QUICK,
        *s3.flags,
        f"--store.endpoint=http://127.0.0.1:{dead_port}",
        "--store.deadline_seconds=2",
        env=s3.env,
    )

    assert done.code == 69
    assert "store.deadline_seconds" in done.error
    assert time.monotonic() - started < 15
    assert done.event("store.retry")["verb"] == "list"
    assert done.event("run.end")["code"] == 69


def test_no_credentials_is_77_naming_the_variables(run_job: RunJob, s3: S3) -> None:
    done = run_job("run", *QUICK, *s3.flags)

    assert done.code == 77
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in done.error


@pytest.fixture
def forbidding_server() -> Iterator[str]:
    """An S3 endpoint that knows nobody."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = b"<Error><Code>InvalidAccessKeyId</Code><Message>unknown key</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_PUT = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_wrong_credentials_is_77_at_once(run_job: RunJob, s3: S3, forbidding_server: str) -> None:
    done = run_job("run", *QUICK, *s3.flags, f"--store.endpoint={forbidding_server}", env=s3.env)

    assert done.code == 77
    assert "access denied" in done.error
    assert "store.retry" not in [event["event"] for event in done.events]
    assert "canary" not in done.stdout + done.stderr


def test_read_only_output_folder_is_77(run_job: RunJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prefix = in_namespace(f"mount --bind {out} {out}", f"mount -o remount,ro,bind {out}")
    done = run_job("run", *QUICK, prefix=prefix)

    assert done.code == 77
    assert "Read-only file system; choose a folder that can be written: store.uri" in done.error


@pytest.mark.tf
def test_full_output_folder_is_69_and_the_run_goes_through_once_there_is_room(run_job: RunJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prefix = in_namespace(f"mount -t tmpfs -o size=1m tmpfs {out}")
    done = run_job("run", *QUICK, "--run.id=r", prefix=prefix)

    assert done.code == 69
    assert "No space left on device; make room" in done.error
    assert run_job("run", *QUICK, "--run.id=r").code == 0


@pytest.mark.tf
def test_run_on_the_embedded_digits_needs_no_network(run_job: RunJob) -> None:
    started = time.monotonic()
    done = run_job("run", *QUICK, "--train.epochs=20", prefix=["unshare", "--net"] if os.geteuid() == 0 else ())

    assert done.code == 0, done.stderr
    assert done.event("run.end")["accuracy"] > 0.93
    assert time.monotonic() - started < 60


@pytest.mark.tf
def test_a_person_at_a_terminal_sees_progress_and_a_summary(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        job_command(["run", *QUICK, "--train.epochs=60"]),
        cwd=tmp_path,
        env=job_environment({"PYTHONPATH": str(Path.cwd()), "TERM": "xterm", "COLUMNS": "140"}),
        stdout=theirs,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other side closed
            break
    os.close(ours)
    text = shown.decode()

    assert process.wait(timeout=60) == 0
    for wanted in ("images/s", "ETA", "accuracy", "epoch.end", "Committed run local.digits-", "mnist-job verify --run"):
        assert wanted in text
    assert '{"time"' not in text


def test_pod_uid_becomes_the_attempt_and_nonsense_is_refused(run_job: RunJob) -> None:
    uid = "0b3c6d5e-8f70-4e0a-9a53-2f1f3d1c9a77"
    ours = run_job("run", *QUICK, "--data.train_examples=9999", env={"POD_UID": uid})
    hostile = run_job("run", *QUICK, env={"POD_UID": "../../x"})

    assert ours.event("run.start")["attempt"] == uid
    assert hostile.code == 64
    assert "POD_UID: must be the pod's UID" in hostile.error


def test_store_check_proves_create_only_writes(run_job: RunJob, s3: S3, tmp_path: Path) -> None:
    on_s3 = run_job("store", "check", *s3.flags, env=s3.env)
    on_disk = run_job("store", "check")

    assert (on_s3.code, on_disk.code) == (0, 0), on_s3.stderr
    assert "a second create-only write is refused" in on_s3.stdout
    assert not list((tmp_path / "out").rglob("checks/*"))
    assert json.loads(run_job("runs", "-o", "json").stdout) == []


def test_credentials_in_a_url_are_refused_and_not_printed(run_job: RunJob) -> None:
    done = run_job("run", *QUICK, "--store.endpoint=http://me:canary@127.0.0.1:9000")

    assert done.code == 64
    assert "holds no credentials, " in done.error
    assert "received 'http://***@127.0.0.1:9000'" in done.error
    assert "canary" not in done.stdout + done.stderr


@pytest.mark.tf
def test_a_reader_that_goes_away_does_not_end_the_training(tmp_path: Path) -> None:
    command = " ".join([*job_command(["run", *QUICK, "--run.id=r", "--observe.termination_log=message"]), "| true"])
    environment = job_environment({"PYTHONPATH": str(Path.cwd())})
    script = f"{command}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, timeout=60, check=False
    )

    assert done.returncode == 0
    assert (tmp_path / "out" / "runs" / "r" / "COMMIT.json").exists()
    assert json.loads((tmp_path / "message").read_text())["outcome"] == "committed"


@pytest.mark.parametrize("arguments", ["--version", "config show", "config schema"])
def test_output_into_a_closed_pipe_is_no_error(tmp_path: Path, arguments: str) -> None:
    environment = job_environment({"PYTHONPATH": str(Path.cwd())})
    environment.pop("PYTHONUNBUFFERED", None)  # it hides what happens at the last flush
    script = f"{' '.join(job_command(arguments.split()))} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, timeout=30, check=False
    )

    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("run --train.epochs=0 --observe.termination_log=message", "train.epochs: must be greater"),
        ("run --train.epochs=0 --observe.termination_log message", "train.epochs: must be greater"),
        ("--observe.termination_log message run --train.epochs=0", "train.epochs: must be greater"),
        ("run --observe.termination_log=other --observe.termination_log message --train.epochs=0", ""),
        ("run --train.epoch=3 --observe.termination_log=message", "--train.epoch: unknown flag"),
        ("run --epochs=3 --observe.termination_log=message", ""),
        ("run --observe.termination_log=message --config", ""),
        ("run --config missing.yaml --observe.termination_log=message", ""),
        ("run --config config.yaml", "train.epochs: must be greater"),
        ("run --config=config.yaml", "train.epochs: must be greater"),
        ("run --config broken.yaml", ""),
        ("run --config twice.yaml", ""),
        ("run --config flow.yaml", "train.epochs: must be greater"),
    ],
)
def test_whatever_is_refused_is_in_the_termination_message_too(
    run_job: RunJob, tmp_path: Path, arguments: str, reason: str
) -> None:
    for name, text in {
        "config": "observe:\n  termination_log: message\ntrain:\n  epochs: 0\n",
        "broken": "observe:\n  termination_log: message\ntrain: [}\n",
        "twice": "observe:\n  termination_log: message\nobserve:\n  log_format: json\n",
        "flow": "{observe: {termination_log: message}, train: {epochs: 0}}",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    done = run_job(*arguments.split())
    message = json.loads((tmp_path / "message").read_text())

    assert (done.code, message["code"], message["outcome"]) == (64, 64, "failed")
    assert message["reason"].startswith(reason)
    assert message["reason"].splitlines()[0] in done.error


@pytest.mark.parametrize("name", ["MNIST_OBSERVE__TERMINATION_LOG", "mnist_observe__termination_log"])
def test_a_variable_names_the_termination_message_of_a_refused_run(run_job: RunJob, tmp_path: Path, name: str) -> None:
    done = run_job("run", "--train.epochs=0", "--run.id=r", env={name: "message"})
    message = json.loads((tmp_path / "message").read_text())
    assert (done.code, message["code"], message["run"]) == (64, 64, "r")


@pytest.mark.parametrize("arguments", ["--help", "--version", "run --help", "config show", "config schema", "runs"])
@pytest.mark.parametrize(("redirection", "loss"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")])
def test_a_command_that_prints_fails_when_nobody_can_read_it(
    tmp_path: Path, arguments: str, redirection: str, loss: str
) -> None:
    environment = job_environment({"PYTHONPATH": str(Path.cwd())})
    script = f"{shlex.join(job_command(arguments.split()))} {redirection}"
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    message = f"mnist-job: error 69: stdout: {loss}; what was asked for is not written; send it elsewhere\n"
    assert (done.returncode, done.stderr) == (69, message)


@pytest.mark.parametrize("redirection", [">/dev/full", ">&- 2>&-", "| true"])
def test_a_command_that_acts_does_so_whoever_reads_it(tmp_path: Path, redirection: str) -> None:
    environment = job_environment({"PYTHONPATH": str(Path.cwd())})
    script = f"{shlex.join(job_command(['store', 'check']))} {redirection}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize(
    ("statement", "code", "reason"),
    [
        ("raise SystemExit(0)", 64, "SystemExit"),
        ("raise KeyboardInterrupt", 64, "KeyboardInterrupt"),
        ("raise MemoryError('none left')", 64, "do not fit into memory: loading them asked for more: none left"),
        ("raise Panic('from another language')", 64, "Panic: from another language"),
        ("raise Silent", 64, "Silent"),
        ("return load()", 64, "RecursionError"),
    ],
)
def test_whatever_is_raised_is_reported(
    run_job: RunJob, tmp_path: Path, statement: str, code: int, reason: str
) -> None:
    (tmp_path / "mine.py").write_text(
        "class Panic(BaseException): pass\n"
        "class Silent(Exception):\n  def __str__(self): raise ValueError\n"
        f"def load():\n  {statement}\n"
    )
    done = run_job(
        "run", "--data.source=mine:load", "--observe.termination_log=message", "--observe.metrics_port=0",
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    message = json.loads((tmp_path / "message").read_text())
    assert (done.code, message["code"], done.event("run.end")["code"]) == (code, code, code), done.stderr
    assert reason in message["reason"]
    assert reason in done.event("error")["reason"]


@pytest.mark.tf
def test_a_container_restarted_in_its_pod_is_another_attempt(run_job: RunJob, tmp_path: Path) -> None:
    uid = "0b3c6d5e-8f70-4e0a-9a53-2f1f3d1c9a77"
    earlier = tmp_path / "out" / "runs" / "r" / "attempts" / uid
    earlier.mkdir(parents=True)
    (earlier / "attempt.json").write_text("{}")
    done = run_job("run", *QUICK, "--run.id=r", env={"POD_UID": uid})

    assert done.code == 0, done.stderr
    assert json.loads((tmp_path / "out" / "runs" / "r" / "COMMIT.json").read_text())["attempt"] == f"{uid}-2"


def test_verify_refuses_a_commit_of_another_run_and_one_that_says_nothing(run_job: RunJob, tmp_path: Path) -> None:
    folder = tmp_path / "out" / "runs" / "r"
    folder.mkdir(parents=True)
    whole: dict[str, object] = {name: {} for name in ("attempt", "result_digest", "weights_digest", "dataset", "files")}
    for content, message in (
        ({}, "it lacks attempt, dataset, files"),
        (whole | {"run": "other", "metrics": {"test_accuracy": 1.0}}, "it is of run 'other'"),
    ):
        (folder / "COMMIT.json").write_text(json.dumps(content))
        done = run_job("verify", "--run", "r")
        assert done.code == 65
        assert message in done.error


LONG = "n" * 300
DATA = """
import numpy as np
from job.datasets import Dataset
def load(one_class=False):
    random, labels = np.random.default_rng(0), np.arange(80) % 2
    images = random.integers(0, 256, (80, 8, 8), np.uint8)
    test_labels = labels * (not one_class)
    return Dataset(train_images=images, train_labels=labels, test_images=images + 1, test_labels=test_labels,
                   class_names=("a", "b"))
"""
MODELS = """
import keras
from keras import layers, ops
class Batch(layers.Layer):
    def call(self, x):
        return x - ops.mean(x, axis=0, keepdims=True)
class Noise(layers.Layer):
    def __init__(self):
        super().__init__()
        self.seed = keras.random.SeedGenerator(1)
    def call(self, x):
        return x + keras.random.normal(ops.shape(x), seed=self.seed)
class Recall(keras.metrics.Metric):
    def __init__(self):
        super().__init__(name="recall_each")
        self.right, self.all = (self.add_variable((2,), initializer="zeros") for _ in range(2))
    def update_state(self, y, p, sample_weight=None):
        self.right.assign_add(ops.sum(y * p, 0))
        self.all.assign_add(ops.sum(y, 0))
    def result(self):
        return ops.mean(self.right / self.all)
class Print(layers.Layer):
    def call(self, x):
        import tensorflow as tf
        tf.print("seen", tf.shape(x))
        return x
def build(s, n, layer=None):
    kinds = {"Batch": Batch, "Noise": Noise, "Print": Print}
    more = [kinds[layer]()] if layer in kinds else []
    model = keras.Sequential([keras.Input(s), layers.Flatten(), *more, layers.Dense(n, activation="softmax")])
    if layer == "Recall":
        model.compile("sgd", "categorical_crossentropy", metrics=[Recall()])
    return model
"""


@pytest.mark.tf
@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("Batch", "its exported model does not predict what the model does"),
        (
            "Noise",
            "its model cannot be exported: AssertionError: Tried to export a function which references an 'untracked'",
        ),
        pytest.param("Print", "has the operation 'PrintV2' (node 'sequential", marks=pytest.mark.security("S4")),
        ("Recall", "metric recall_each is nan; a metric must be a finite number"),
    ],
)
def test_own_model_that_could_not_be_published_is_64_before_anything_is_trained(
    run_job: RunJob, tmp_path: Path, layer: str, message: str
) -> None:
    (tmp_path / "mydata.py").write_text(DATA)
    (tmp_path / "mymodels.py").write_text(MODELS)
    flags = ("--data.source=mydata:load", "--model.build=mymodels:build", f"--model.args={{layer: {layer}}}")
    more = ("--data.args={one_class: true}",) if layer == "Recall" else ()
    done = run_job("run", *flags, *more, *QUICK[:1], "--train.global_batch_size=40", env={"PYTHONPATH": str(tmp_path)})

    assert done.code == 64, done.stderr
    assert "model.build: mymodels:build" in done.error
    assert message in done.error
    assert not list((tmp_path / "out").rglob("run.json"))


@pytest.mark.tf
def test_temporary_folder_without_room_for_the_export_is_69_before_anything_is_trained(
    run_job: RunJob, tmp_path: Path
) -> None:
    (tmp_path / "tmp").mkdir()
    prefix = in_namespace(f"mount -t tmpfs -o size=1m tmpfs {tmp_path / 'tmp'}")
    done = run_job("run", *QUICK, prefix=prefix, env={"TMPDIR": str(tmp_path / "tmp")})

    assert done.code == 69
    assert (
        f"TMPDIR: the exported model takes 2.7 MB in {tmp_path / 'tmp'}, 1.0 MB are free; make room there, or"
        in done.error
    )
    assert not list((tmp_path / "out").rglob("run.json"))


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (f"--promotion.model_name={LONG}", "needs a name of 310 bytes, nnn"),
        (f"--store.uri=file:./{LONG}", "each name in it 255"),
        (f"--store.uri=file:./{'/'.join([LONG[:200]] * 20)}", "at most 4095 are possible; use a shorter folder"),
        (
            f"--store.uri=s3://bucket/{LONG * 4}",
            "such as ...",
        ),
    ],
)
def test_names_that_the_store_cannot_hold_are_64_before_anything_else(run_job: RunJob, flag: str, message: str) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "canary-id", "AWS_SECRET_ACCESS_KEY": "canary-secret"}
    done = run_job("run", *QUICK, flag, env=keys)

    assert done.code == 64
    assert message in done.error


@pytest.mark.parametrize("name", ["models", "models/digits", "models/digits/champion", "runs", "runs/r"])
def test_folder_of_the_store_that_is_closed_is_77_before_anything_is_trained(
    run_job: RunJob, tmp_path: Path, name: str
) -> None:
    closed = tmp_path / "out" / name
    closed.mkdir(parents=True)
    closed.chmod(0o555)
    prefix = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search") if os.geteuid() == 0 else ()
    done = run_job("run", *QUICK, "--run.id=r", prefix=prefix)

    assert done.code == 77
    assert f"store file:{tmp_path}/out: {name}" in done.error
    assert "Permission denied; choose a folder that can be written: store.uri" in done.error
    assert "data.ready" not in [event["event"] for event in done.events]


_FAIL = r"""
import job.attempt
from job.__main__ import main

def fail(*_, **__):
    raise RuntimeError("\x1b[31mnobody foresaw it: hunter2hunter2xyz")

job.attempt._prepare = fail
main()
"""


@pytest.mark.security("S10")
@pytest.mark.security("S11")
def test_the_stack_of_an_error_that_nobody_foresaw_is_in_the_log_and_in_the_store(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _FAIL, "run", *QUICK, "--run.id=r", "--observe.log_format=json"],
        cwd=tmp_path,
        env=job_environment({"PYTHONPATH": str(REPOSITORY), "MY_PASSWORD": "hunter2hunter2xyz"}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    finished = Finished(code=done.returncode, stdout=done.stdout, stderr=done.stderr)
    assert finished.code == 1
    stack = finished.event("error")["stack"].splitlines()
    assert stack[0] == "Traceback (most recent call last):"
    assert any("in run_command" in line for line in stack)
    assert stack[-1] == r"RuntimeError: \u001b[31mnobody foresaw it: ***"
    [segment] = (tmp_path / "out").rglob("*.jsonl")
    assert segment.read_text() == done.stdout
