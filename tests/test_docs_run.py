"""README and docs, run as they are written: each session in a folder of its own, in the order of its page, with the page's files.

What the page prints is compared line by line, as far as it is the same everywhere: ids, digests, times and paths may be others.
`test_docs.py` asks for a session here, or a test elsewhere, for every block that starts a program of ours.
"""

import os
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import QUICK, REPOSITORY, S3, Finished, job_environment, skip_or_fail
from tests.documents import find_block, steps_of

_LINKED = (".venv", "charts", "docs", "job", "k8s", "pyproject.toml", "scripts", "tests", "uv.lock")
_TOKENS = re.compile(
    r"(?P<anything>\.\.\.|\d{4}-\d\d-\d\dT[\d:.+]+|\b(?=[a-f-]*\d)[0-9a-f]{8}[0-9a-f-]*\b"
    r"|(?<=seconds=)[\d.]+|[\d.]+(?= s\b)|[\d.]+e-\d+)"
    r"|(?P<fraction>\d+\.\d+)|(?P<space>\s+)"
)
_ERROR = re.compile(r"^mnist-\w+: error (\d+): ", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a reader types from a page.

    Attributes:
        parts: what is done (`run`, `prints`, or the file to write) and a text of the block that it is done with. A block with
            `$ ` is run line by line, and what stands behind a line is what it prints.
        put: what is put in the place of placeholders and of what takes too long, in all blocks.
        tolerance: how far printed fractions may be off: the last bits of a training are those of the processor.
    """

    page: str
    parts: tuple[tuple[str, str], ...]
    put: Mapping[str, str] = field(default_factory=dict)
    tolerance: float = 0.02


FIRST = Session(
    page="README.md",
    parts=(("run", "git clone <this repository>"), ("prints", "Committed run local.digits-")),
    put={"git clone <this repository> mnist-train && cd mnist-train\n": ""},
)
KILLED = Session(page="README.md", parts=(("run", "--run.id=whole"),), put={"epochs: 400": "epochs: 200"})
OWN_MODEL = Session(
    page="docs/own-model.md",
    parts=(
        ("draw.py", "np.savez"),
        ("run", "draw.py"),
        ("mydata.py", "def load("),
        ("run", "data check"),
        ("mymodels.py", "def small_cnn("),
        ("settings.yaml", "early_stopping_patience: 4"),
        ("run", "scripts/run --config settings.yaml"),
        ("prints", "Committed run local.mydata-load"),
        ("run", "verify --champion mydata.load"),
        ("run", "kill -9 $!"),
    ),
    put={
        "report RUN": 'report "$(basename out/runs/*)"',
        # The last bits, which are those of the processor, say which epoch is the best, and whether that stops the training.
        "epoch   38": "epoch ...",
        "rate 6.38e-05": "rate ...",
        'train.stopped_early step=2698 epoch=38 best_epoch=34 reason="val_loss was not better in 4 evaluations"': "",
        "of epoch 34 of 38, the best; stopped early (train.epochs 40)": "of epoch ..., the best",
    },
    tolerance=0.1,
)
RECIPE = Session(page="docs/training.md", parts=(("run", "--train.schedule=warmup-cosine --train.warmup_steps=40"),))
VALIDATION = Session(page="docs/validation.md", parts=(("run", "--train.early_stopping_patience=5"),))
WEEK = Session(
    page="docs/retraining.md",
    parts=(
        ("run", "--run.id=monday"),
        ("run", "--run.id=tuesday --train.epochs=1"),
        ("run", "--run.id=wednesday"),
        ("run", 'rollback --why "sevens'),
        ("run", "--run.id=thursday"),
        ("run", "promote tuesday --force"),
    ),
    put={
        "--data.uri=FOLDER": "--data.uri=FOLDER --data.train_examples=6000",  # of minutes
        **dict.fromkeys(("root on vm", "2 min 51 s", "18.1", "53.1", "3253574 bytes"), "..."),
        "p = 0 ": "p = ... ",
    },
    tolerance=10,  # with so few examples only the words are the same; the numbers are those of tests/acceptance
)
_TWO = "--train.learning_rate=0.1 --train.global_batch_size=32 --cluster.cpu_replicas=2"
WORKERS = Session(
    page="docs/workers.md",
    parts=(("run", _TWO), ("run", ".venv/bin/mnist-job show alone")),
    put={
        _TWO: f"{_TWO}\nscripts/run --data.source=digits --train.optimizer=momentum {_TWO} --run.id=alone",
        "local.digits-...": '"$(basename out/runs/local*)"',
    },
)
TORTURE = Session(
    page="docs/reliability.md",
    parts=(("run", "scripts/torture --quick"),),
    put={"scripts/torture --quick ": "true ", "--trials 1000": "--trials 2", "scripts/torture --seed 7 ": "true "},
)
_QUICK = " ".join(QUICK)
# Named outside of blocks, typed, exit code, printed; in this order, on a store that holds the run `r`.
TYPED = [
    ("run --section.field=VALUE ...", f"mnist-job run {_QUICK} --train.epochs=6 --run.id=second", 0, "promoted to version 2"),
    ("run --help", "mnist-job run --help", 0, "--train.epochs=20"),
    ("verify --run ID", "mnist-job verify --run second", 0, "verified: run second"),
    ("verify --champion NAME", "mnist-job verify --champion digits", 0, "champion of digits: version 2"),
    ("reproduce RUN", "mnist-job reproduce r", 0, "weights digest .*: equal"),
    ("runs", "mnist-job runs", 0, "second +committed +20.* digits"),
    ("runs --last 10", "mnist-job runs --last 10", 0, "digits 2 since"),
    ("show RUN", "mnist-job show r", 0, "Run r: committed, exit code 0"),
    ("logs RUN", "mnist-job logs r", 0, '"commit.done"'),
    ("logs RUN -f", "mnist-job logs r -f", 0, "run r ended as committed"),
    ("report RUN", "mnist-job report r && ls report.html", 0, "report.html"),
    ("report --index", "mnist-job report --index --data.source=digits", 0, "models/digits/index.html"),
    ("promote RUN", "mnist-job promote r", 78, "r is not promoted: .* --force moves the champion all the same"),
    ("promote RUN --why TEXT", "mnist-job promote r --why TEXT --force", 0, "version 3 .forced.(.|\\n)*: TEXT"),
    ("rollback", "mnist-job rollback", 0, "run second, version 4"),
    ("rollback --why TEXT", "mnist-job rollback --why TEXT", 0, "run r, version 5(.|\\n)*: TEXT"),
    ("rollback --to RUN", "mnist-job rollback --to second", 0, "run second, version 6"),
    ("fetch --to DIR --every SECONDS", "timeout --preserve-status 20 mnist-job fetch --to DIR --every 1", 75, "DIR/6: run"),
    ("data check", "mnist-job data check --data.source=digits", 0, "digits: 1437 . 360 examples"),
    ("gc", "mnist-job gc", 0, "dry run, nothing deleted"),
    ("gc", "mnist-job gc --delete", 0, "deleted 0 objects"),
    ("store check", "mnist-job store check", 0, "a second create-only write is refused"),
    ("config show", "mnist-job config show", 0, "epochs: 20 +# default"),
    ("config schema", "mnist-job config schema", 0, '"title": "Config"'),
]  # fmt: skip
SESSIONS = [FIRST, KILLED, OWN_MODEL, RECIPE, VALIDATION, WEEK, WORKERS, TORTURE]


class Desk:
    """A folder that looks like a clone, with nothing in it that was made; what is downloaded is not to be had."""

    def __init__(self, folder: Path, *, folder_of_mnist: Path | None = None) -> None:
        self.folder = folder
        self._put = {"FOLDER": str(folder_of_mnist)} if folder_of_mnist else {}
        for name in _LINKED:
            if not (REPOSITORY / name).exists():
                skip_or_fail(f"no {name} beside the tests: run scripts/setup")
            (folder / name).symlink_to(REPOSITORY / name)

    def play(self, session: Session) -> str:
        """Do every part of a session; returns all that was printed."""
        printed = [""]
        for what, text in session.parts:
            block = find_block(session.page, text)
            put = {**session.put, **self._put}
            place = f"{session.page}:{block.line}"
            if what == "prints":
                check_printed(_put(block.text, put).splitlines(), printed[-1], place=place, tolerance=session.tolerance)
            elif what != "run":
                (self.folder / what).write_text(block.text + "\n")
            elif steps := steps_of(block):
                for step in steps:
                    shown = _put("\n".join(step.printed), put)
                    printed.append(self.run(_put(step.script, put), shown=shown, place=place))
                    check_printed(shown.splitlines(), printed[-1], place=place, tolerance=session.tolerance)
            else:
                printed.append(self.run(_put(block.text, put), place=place))
        return "\n".join(printed)

    def run(self, script: str, *, shown: str = "", place: str = "", env: Mapping[str, str] | None = None) -> str:
        """What a script prints; it must end as the page shows: with its error, else with none and with 0."""
        done = run_script(script, folder=self.folder, env=env)
        code = (_ERROR.findall(shown) or ["0"])[-1]
        assert str(done.code) == code, f"{place}: exit code {done.code}\n{script}\n{done.stdout}"
        assert _ERROR.findall(done.stdout) == _ERROR.findall(shown), f"{place}\n{script}\n{done.stdout}"
        return done.stdout


def run_script(script: str, *, folder: Path, env: Mapping[str, str] | None = None) -> Finished:
    """A script of the shell in that folder, both streams together; what is left of it after 280 s is killed."""
    environment = job_environment({
        "PATH": f"{REPOSITORY / '.venv' / 'bin'}:{os.environ['PATH']}",
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HTTPS_PROXY": "http://127.0.0.1:9",  # nobody listens there: no download
        "MNIST_OBSERVE__LOG_FORMAT": "text",  # as on a terminal
        "MNIST_OBSERVE__METRICS_PORT": "0",
        "JOB": str(REPOSITORY),
        **(env or {}),
    })  # fmt: skip
    process = subprocess.Popen(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=280)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Finished(code=process.returncode, stdout=output, stderr="")


def check_printed(shown: Sequence[str], printed: str, *, place: str, tolerance: float) -> None:
    """Every line that the page shows was printed, in this order; what is between them is not shown."""
    left = iter(printed.splitlines())
    for line in shown:
        if line.strip():
            assert any(is_alike(line, candidate, tolerance=tolerance) for candidate in left), (
                f"{place}: not printed, or not in this order:\n{line}\nprinted:\n{printed}"
            )


def is_alike(shown: str, printed: str, *, tolerance: float) -> bool:
    """Whether a line holds what the page shows: `...`, digests, ids and times are anything, fractions are near."""
    pattern, fractions, at = "", [], 0
    for token in _TOKENS.finditer(shown.strip()):
        pattern += re.escape(shown.strip()[at : token.start()])
        pattern += {"anything": ".*", "fraction": r"([\d.]+)", "space": r"\s+"}[str(token.lastgroup)]
        fractions += [float(token[0])] if token["fraction"] else []
        at = token.end()
    found = re.search(pattern + re.escape(shown.strip()[at:]), printed)
    return found is not None and all(
        abs(wanted - float(received)) <= tolerance for wanted, received in zip(fractions, found.groups(), strict=True)
    )


def _put(text: str, put: Mapping[str, str]) -> str:
    for placeholder, value in put.items():
        text = text.replace(placeholder, value)
    return text


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A fresh one, without MNIST."""
    return Desk(tmp_path)


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("accuracy 0.9583, loss 0.1377 on 360 examples", "  accuracy 0.9611, loss 0.1390 on 360 examples", True),
        ("accuracy 0.9583, loss 0.1377 on 360 examples", "  accuracy 0.9211, loss 0.1390 on 360 examples", False),
        ("accuracy 0.9583 on 360 examples", "accuracy 0.9583 on 361 examples", False),
        ("Committed run local.digits-... after ... s", "Committed run local.digits-0badcafe after 3.1 s", True),
        (
            "key=runs/monday/COMMIT.json weights_digest=c542d05f... x",
            "key=runs/monday/COMMIT.json weights_digest=1 x",
            True,
        ),
        ("Committed run monday after 171.0 s", "Committed run monday after 9.2 s", True),
        ("Committed run monday after 171.0 s", "Committed run tuesday after 171.0 s", False),
        (
            "version 3 since 2026-11-24T05:08:49.883+00:00 by gate",
            "version 3 since 2027-01-01T00:00:00+00:00 by gate",
            True,
        ),
        ("version 3", "version 2", False),
    ],
)
def test_printed_line_is_compared_as_far_as_it_is_the_same_everywhere(shown: str, printed: str, expected: bool) -> None:
    assert is_alike(shown, printed, tolerance=0.02) is expected


@pytest.mark.tf
def test_the_first_run_of_the_readme_and_the_same_again(desk: Desk) -> None:
    desk.play(FIRST)
    assert "is committed already; nothing was trained. To train again: --run.suffix=again" in desk.run("scripts/run")


@pytest.mark.tf
@pytest.mark.full
def test_a_killed_run_ends_in_the_digests_of_a_whole_one(desk: Desk) -> None:
    printed = desk.play(KILLED)
    [restored] = re.findall(r"checkpoint.restored.*?step=(\d+) of=(\d+)", printed)
    assert 0 < int(restored[0]) < int(restored[1]), "it was killed after the training"
    assert_digests_twice(printed)


@pytest.mark.tf
@pytest.mark.full
def test_own_model_from_an_empty_folder(desk: Desk) -> None:
    printed = desk.play(OWN_MODEL)
    assert "checkpoint.restored" in printed
    assert "commit.done" in printed


@pytest.mark.tf
@pytest.mark.full
@pytest.mark.parametrize(
    ("session", "text"),
    [(RECIPE, "top_3_accuracy"), (VALIDATION, "stopped early (train.epochs 60)")],
    ids=["recipe", "validation"],
)
def test_training_is_as_shown(desk: Desk, session: Session, text: str) -> None:
    assert text in desk.play(session)


@pytest.mark.tf
@pytest.mark.full
def test_a_week_of_retraining(tmp_path: Path, mnist_dir: Path) -> None:
    Desk(tmp_path, folder_of_mnist=mnist_dir).play(WEEK)


@pytest.mark.tf
@pytest.mark.full
def test_several_workers_are_one_process(desk: Desk) -> None:
    printed = desk.play(WORKERS)
    assert "is committed already; nothing was trained" in printed
    assert_digests_twice(printed)


@pytest.mark.full
def test_torture_does_what_reliability_says(desk: Desk) -> None:
    printed = desk.play(TORTURE)
    assert "R3" in printed


def test_mnist_into_a_bucket(desk: Desk, mnist_dir: Path, s3: S3) -> None:
    env = {**s3.env, "MNIST_STORE__ENDPOINT": s3.endpoint, "MNIST_STORE__REGION": "us-east-1"}
    check = "mnist-job data check --data.source=idx --data.uri=s3://bucket/data/mnist"
    put = {
        "FOLDER": str(mnist_dir),
        "helm install ... --set data.source=idx --set data.uri=s3://bucket/data/mnist": check,
    }
    script = find_block("docs/operations.md", "data prepare --from FOLDER").text
    printed = desk.run(_put(_put(script, put), {"s3://bucket": f"s3://{s3.bucket}"}), env=env)
    assert "mnist: 60000 + 10000 examples" in printed


@pytest.mark.tf
def test_typed(desk: Desk, trained: Finished, is_full: bool) -> None:
    """One after the other, on a store with one committed run."""
    assert trained.code == 0
    for documented, typed, code, printed in TYPED:
        if is_full or not documented.startswith("reproduce"):
            done = run_script(typed, folder=desk.folder)
            assert done.code == code, f"{documented}: {typed}\n{done.stdout}"
            assert re.search(printed, done.stdout), f"{documented}: {typed}\n{done.stdout}"


@pytest.mark.tf
def test_command_that_a_summary_prints_can_be_typed(desk: Desk, trained: Finished) -> None:
    assert trained.code == 0
    (desk.folder / "out").rename(desk.folder / "it's mine")
    printed = desk.run(f'mnist-job run {_QUICK} --run.id=r "--store.uri=file:./it\'s mine"')
    [look] = re.findall(r"^  look +(.*)$", printed, re.MULTILINE)
    assert desk.run(look).startswith("Run r: committed")


def assert_digests_twice(printed: str) -> None:
    digests = re.findall(r'"(\w+_digest)": "(\w+)"', printed)
    assert len(digests) == 2 * len(set(digests)) > 0, printed
