"""Every command that README and docs name is accounted for; one that is not fails with page and line.

A block that starts a program of ours is run by a session of `test_docs_run.py`, or by the test that `RUN_ELSEWHERE` names.
Every command is parsed by the program that it names, which knows each verb, flag, setting and value. What needs a cluster is
in `IN_A_CLUSTER`.
"""

import contextlib
import io
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

from job.commands.cli import parse_command_line as parse_job
from job.config import default_values
from job.config_sources import check_flags
from job.contract import Event
from job.errors import ConfigError, JobError
from k8s.cli import parse_command_line as parse_client
from k8s.errors import ClientError
from tests.charts.helm import RenderError, render_text
from tests.conftest import REPOSITORY, skip_or_fail
from tests.documents import PAGES, Block, Command, find_block, read_commands, read_text
from tests.test_docs_run import SESSIONS, TYPED
from tests.torture.__main__ import all_campaigns
from tests.torture.planted import PLANTED

_STARTERS = ("mnist-job", "scripts/run", "scripts/workers")

_ACCEPTANCE, _E2E, _HERE = "acceptance/test_mnist.py::", "e2e/", "test_docs_run.py::"

# Page, a text of the block, and the test that does what the block says.
RUN_ELSEWHERE = [
    (
        "README.md",
        "--run.id=reference",
        f"{_ACCEPTANCE}test_reference_run_reaches_its_accuracy_and_the_readme_snippet_classifies",
    ),
    ("README.md", "--model.activation=relu", f"{_ACCEPTANCE}test_relu_and_adam_reach_the_promised_accuracy"),
    ("README.md", "scripts/workers 2", f"{_HERE}test_several_workers_are_one_process"),
    ("CONTRIBUTING.md", "# one training", f"{_HERE}test_the_first_run_of_the_readme_and_the_same_again"),
    ("docs/operations.md", "data prepare --from FOLDER", f"{_HERE}test_mnist_into_a_bucket"),
    ("docs/retraining.md", "fetch --to DIR --every 60", f"{_HERE}test_typed"),
]

_INSTALL = f"{_E2E}test_release.py::test_install_trains_into_object_storage_and_helm_test_verifies_it"
_UPGRADE = f"{_E2E}test_release.py::test_upgrades_start_what_they_should_and_uninstall_keeps_the_results"
_DELETED = f"{_E2E}test_lifecycle.py::test_a_deleted_pod_is_replaced_and_the_new_one_goes_on_at_the_very_step"
_CLIENT = f"{_E2E}test_client.py::test_two_runs_one_evicted_and_followed_one_cancelled"
_NIGHTS = f"{_E2E}test_retraining.py::test_every_night_is_judged_and_the_champion_can_be_taken_back"
_TRIGGER = "test_a_triggered_run_with_a_bad_setting_of_its_own_is_refused_and_one_that_fails_says_why"
_NAMESPACE = f"{_E2E}cluster.py::made_namespace"
_APPLIED = "test_two_jobs_that_nothing_pruned_commit_one_run_once"

# The first words of a command, and the test in a cluster that does the same.
IN_A_CLUSTER = {
    "helm install": _INSTALL,
    "helm install train oci:": f"{_E2E}test_publishing.py::test_a_release_is_pushed_once_and_installed_by_digest",
    "helm test": _INSTALL,
    "helm upgrade": _UPGRADE,
    "helm uninstall": _UPGRADE,
    "helm rollback": _UPGRADE,
    "helm template": f"{_E2E}test_waiting.py::{_APPLIED}",
    "kubectl apply": f"{_E2E}test_waiting.py::{_APPLIED}",
    "kubectl create job": f"{_E2E}test_release.py::test_a_schedule_can_be_started_by_hand",
    "kubectl create -f": _NAMESPACE,
    "kubectl create namespace": _NAMESPACE,
    "kubectl debug": f"{_E2E}test_security.py::test_a_pod_has_no_rights_no_token_no_shell_and_a_root_that_nobody_writes",
    "kubectl delete pod": _DELETED,
    "kubectl delete jobs": _NAMESPACE,
    "kubectl delete namespace": _NAMESPACE,
    "kubectl exec": _NIGHTS,
    "kubectl get": _DELETED,
    "kubectl logs": f"{_E2E}test_exit_codes.py::test_every_exit_code_ends_the_job_as_the_contract_says",
    "mnist-k8s submit": _CLIENT,
    "mnist-k8s list": _CLIENT,
    "mnist-k8s status": _CLIENT,
    "mnist-k8s wait": _CLIENT,
    "mnist-k8s logs": _CLIENT,
    "mnist-k8s cancel": _CLIENT,
    "mnist-k8s resume": _CLIENT,
    "mnist-k8s trigger": f"{_E2E}test_client.py::{_TRIGGER}",
}
# These take a node away, or need what no cluster of ours has: kubectl parses them, and no test does the same.
ONLY_PARSED = (
    "helm registry login",
    "kubectl create secret",
    "kubectl delete node",
    "kubectl describe",
    "kubectl patch",
)

# A flag that a script hands on, and the files that know it.
_FLAGS_IN = {
    "scripts/bench": ("scripts/bench", "scripts/benchmarks"),
    "scripts/torture": ("tests/torture/__main__.py",),
    "scripts/workers": ("scripts/local_workers.py",),
}
_PUT = {
    "--section.field=VALUE": "--train.epochs=3",
    "section.field=value": "train.epochs=3",
    "SECONDS": "1",
    "N": "1",
    "RUN...": "RUN",
}
_OF_PYTEST = ("scripts/test", "scripts/e2e")
_SECTIONS = "run|data|model|train|cluster|checkpoint|store|promotion|retention|observe"
_SETTING = re.compile(rf"(?:{_SECTIONS})\.[a-z_]+(?:=.*)?")
_SPAN = re.compile(r"`([^`]+)`")
_SPLIT = ("--data.validation_fraction=0.1",)
_NEEDED = {
    "data.source=idx": ("--data.uri=FOLDER",),
    "data.uri": ("--data.source=idx",),
    "model.args": ("--model.build=mymodels:small_cnn",),
    "train.early_stopping_patience": _SPLIT,
    "train.keep=best": _SPLIT,
}


_TYPED = {documented for documented, *_ in TYPED} | {
    "data prepare --to URI --from FOLDER",  # test_mnist_into_a_bucket
    "data prepare --to s3://bucket/mnist",  # the same
    "run --cluster.workers=2 ...",  # test_several_workers_are_one_process
}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_accounted_for(page: str) -> None:
    assert [complaint for command in read_commands(page) if (complaint := find_gap(command))] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_known_to_its_program(page: str) -> None:
    assert [complaint for command in read_commands(page) if (complaint := find_mistake(command))] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_settings_exist_and_take_the_named_values(page: str) -> None:
    assert find_wrong_settings(page) == []


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    """Links, with the heading behind `#`, and paths in spans of code."""
    assert [f"{page}:{number}: {name}" for number, name in _named_files(page) if not _is_there(name)] == []


def test_every_event_is_in_the_reference_and_every_one_there_is_logged() -> None:
    page = (REPOSITORY / "docs" / "reference.md").read_text()
    text = page.partition("\n## Log events\n")[2].partition("\n## ")[0]
    logged = {event.value for event in Event} | set(re.findall(r'warn\(\s*"([a-z_.]+)"', _sources()))
    assert {name for name in logged if name not in text} == set()
    assert {name for name in re.findall(r"\b[a-z]+\.[a-z_]+\b", text) if f'"{name}"' not in _sources()} == set()


def test_every_planted_bug_that_is_documented_can_be_planted() -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text()
    assert set(re.findall(r"^\| `([a-z-]+)`: ", page, re.MULTILINE)) <= set(PLANTED)


def test_every_number_of_a_promise_leads_to_what_shows_it_and_no_gap_is_unexplained() -> None:
    page = (REPOSITORY / "docs" / "reliability.md").read_text()
    linked = dict(re.findall(r"^\| \[(R\d+)\]\(\.\./(tests/torture/\w+)\.py\) \|", page, re.MULTILINE))
    assert linked == {each.name: each.trial.__module__.replace(".", "/") for each in all_campaigns()}
    others = {
        number for row in re.findall(r"^\| ((?:R\d+(?:, )?)+) \|.*\|", page, re.MULTILINE) for number in row.split(", ")
    }
    assert {f"R{number}" for number in range(1, 27)} <= others | linked.keys()


@pytest.mark.parametrize("where", sorted({*(where for *_, where in RUN_ELSEWHERE), *IN_A_CLUSTER.values()}))
def test_test_that_is_named_exists(where: str) -> None:
    path, _, name = where.partition("::")
    assert f"\ndef {name}(" in (REPOSITORY / "tests" / path).read_text()


@pytest.mark.parametrize(
    ("page", "complaint"),
    [
        ("    mnist-job rnu --train.epochs=3", "invalid choice: 'rnu'"),
        ("    scripts/run --train.epochz=3", "--train.epochz: unknown flag"),
        ("Type `mnist-job fetch --into DIR`.", "--to"),
        ("Set `train.epochs=none`.", "train.epochs"),
        ("    helm install train charts/mnist-train --set train.epochz=3", "epochz"),
        ("    mnist-k8s submit --put train.epochs=3", "--put"),
        ("    mnist-k8s submit --set train.epochz=3", "train.epochz"),
        ("    kubectl get pod --every=3", "--every"),
        ("    scripts/torture --fast", "--fast"),
        ("    scripts/tortures", "scripts/tortures"),
        ("| command |\n| --- |\n| `mnist-job runs`, `shows RUN` |", "shows"),
    ],
)
def test_what_no_program_knows_is_found(
    page: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text(f"# Page\n\n{page}\n")
    monkeypatch.setattr("tests.documents.REPOSITORY", tmp_path)
    mistakes = [mistake for command in read_commands("page.md") if (mistake := find_mistake(command))]
    [found] = [*mistakes, *find_wrong_settings("page.md")]
    assert re.match(r"page\.md:[35]: ", found)
    assert complaint in found


@pytest.mark.parametrize(
    ("page", "what"),
    [
        ("    scripts/run --train.epochs=7", "tests/test_docs_run.py"),
        ("    timeout 9 mnist-job run --train.epochs=7 | head", "tests/test_docs_run.py"),
        ("```sh\n.venv/bin/mnist-job gc\n```", "tests/test_docs_run.py"),
        ("Or `mnist-job runs\n--last 11`.", "TYPED"),
        ("| command |\n| --- |\n| `mnist-job run`, `show ID` |", "TYPED"),
        ("    kubectl drain NODE", "IN_A_CLUSTER"),
        ("    helm history train", "IN_A_CLUSTER"),
    ],
)
def test_what_nothing_runs_is_found(page: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_blocks()
    (tmp_path / "page.md").write_text(f"# Page\n\n{page}\n")
    monkeypatch.setattr("tests.documents.REPOSITORY", tmp_path)
    [gap] = [gap for command in read_commands("page.md") if (gap := find_gap(command))]
    assert re.match(r"page\.md:[345]: ", gap)
    assert what in gap


def find_gap(command: Command) -> str:
    """Why a command is not accounted for; empty when it is."""
    if command.is_mention:
        return ""
    if command.program in ("kubectl", "helm", "mnist-k8s"):
        is_named = any(f"{command.text} ".startswith(f"{name} ") for name in (*IN_A_CLUSTER, *ONLY_PARSED))
        return "" if is_named else f"{command}: no test in IN_A_CLUSTER does the same"
    if command.block:
        is_in_a_pod = "kubectl exec" in command.block.text
        is_run = command.program not in _STARTERS or is_in_a_pod or command.block in _run_blocks()
        return "" if is_run else f"{command}: no session of tests/test_docs_run.py runs its block"
    is_typed = command.program != "mnist-job" or " ".join(command.words[1:]) in _TYPED
    return "" if is_typed else f"{command}: is not in TYPED of tests/test_docs_run.py"


@cache
def _run_blocks() -> frozenset[Block]:
    """Blocks that a session or a test elsewhere runs."""
    played = {(session.page, text) for session in SESSIONS for _, text in session.parts}
    return frozenset(
        find_block(page, text) for page, text in played | {(page, text) for page, text, _ in RUN_ELSEWHERE}
    )


def find_mistake(command: Command) -> str:
    """What the program of a command does not know; empty when it knows all."""
    try:
        check_command(command)
    except (AssertionError, JobError, ClientError, RenderError) as error:
        return f"{command}: {error}"
    return ""


def check_command(command: Command) -> None:
    if command.program.startswith(("scripts/", ".ci/")):
        check_script(command)
    elif command.program in ("mnist-job", "mnist-k8s"):
        parse(command)
    elif command.program == "helm" and "--set" in command.words:
        render_as_told(command)
    elif len(command.words) > 1:
        check_with_help(command)


def find_wrong_settings(page: str) -> list[str]:
    """Spans of code that name a setting which does not exist, or a value that it does not take."""
    wrong = []
    for number, line in read_text(page):
        for words in map(_split_settings, _SPAN.findall(line)):
            try:
                check_settings(words)
            except (AssertionError, JobError) as error:
                wrong.append(f"{page}:{number}: {error}")
    return wrong


def _split_settings(span: str) -> list[str]:
    """`section.field`, with its value or without, and several of them as flags."""
    try:
        words = [word.removeprefix("--") for word in shlex.split(span)]
    except ValueError:  # `tf.random.normal('...` and the like
        return []
    return words if words and all(_SETTING.fullmatch(word) for word in words) else []


def check_settings(words: list[str]) -> None:
    """Those that are settings take their values, each with what it cannot be without; the others are events or files."""
    flags = []
    for word in words:
        name, _, value = word.partition("=")
        is_setting = name in default_values()
        is_known = is_setting or f'"{name}"' in _sources() or name.endswith((".json", ".py")) or name == "model.compile"
        assert is_known, f"{name} is no setting, event or file"
        if is_setting and value and not re.fullmatch(r"[A-Z]+|\.\.\.", value):
            flags += [*_NEEDED.get(word, ()), *_NEEDED.get(name, ()), f"--{word}"]
    if flags:
        check_flags(flags)


def parse(command: Command) -> None:
    """By the program itself; what is only mentioned, by the help of its verb. A page may show how a setting is refused."""
    words = [_PUT.get(word, word.replace("=...", "=file:./out")) for word in command.words[1:] if word != "..."]
    words = [word.replace("=N", "=1") for word in words]
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            if command.program == "mnist-job":
                settings = parse_job([*words, "--help"] if command.is_mention else words).settings
            else:
                client = parse_client([*words, "--help"] if command.is_mention else words)
                settings = [f"--{setting}" for setting in getattr(client, "settings", ())]
        if settings:
            check_flags(settings)
    except SystemExit:
        assert command.is_mention or "--help" in words
    except ConfigError as error:
        if not (command.block and str(error) in command.block.text):
            raise


def check_script(command: Command) -> None:
    """It is there, can be started, and knows each flag; of what goes on to the job, each setting."""
    script = REPOSITORY / command.program
    assert script.is_file(), f"{command}: there is no {command.program}"
    assert script.stat().st_mode & 0o100, f"{command}: cannot be started"
    settings = [word for word in command.words if re.match(r"--[a-z]+\.", word)]
    if settings:
        check_flags(settings)
    if command.program in _OF_PYTEST:
        check_known(command, script.read_text() + _output(sys.executable, "-m", "pytest", "--help"))
    elif command.program != "scripts/run":
        files = [REPOSITORY / name for name in _FLAGS_IN.get(command.program, (command.program,))]
        texts = [path.read_text() for file in files for path in (file.glob("*.py") if file.is_dir() else [file])]
        check_known(command, "\n".join([*texts, *settings]))


def check_with_help(command: Command) -> None:
    """Each flag is in the help of the verb."""
    verb = list(itertools.takewhile(str.isalpha, command.words[1:]))[: 3 if "create" in command.words else 1]
    text = _output(command.program, *verb, "--help")
    assert verb[0] in text.partition("Usage:")[2], f"{command}: {command.program} has no {verb[0]}"
    check_known(command, text + (_output("kubectl", "options") if command.program == "kubectl" else ""))


def check_known(command: Command, text: str) -> None:
    """Each flag of a command is in the text that describes the program."""
    for word in command.words:
        flag = word.partition("=")[0]
        if flag.startswith("-") and flag.strip("-"):
            assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", text), (
                f"{command}: {command.program} does not know {flag}"
            )


def render_as_told(command: Command) -> None:
    """The chart takes the values; `nightly.yaml` holds what docs/retraining.md says."""
    flags = list(command.words[1:])
    told = [flags[at + 1] for at, word in enumerate(flags) if word == "--set"]
    values = _NIGHTLY if "nightly.yaml" in flags else {}
    for placeholder, value in _PLACEHOLDERS.items():
        told = [each.replace(placeholder, value) for each in told]
    render_text(values, flags=tuple(f"--set={value}" for value in told))


_PLACEHOLDERS = {"REGISTRY": "registry.example", "NAME": "name", "DIGEST": f"sha256:{'0' * 64}"}


_NIGHTLY = yaml.safe_load("""
image: {repository: registry.example/mnist-train}
store: {uri: "s3://models/mnist"}
data: {source: idx, uri: "s3://models/data"}
credentials: {existingSecret: store-keys}
schedule: "* * * * *"
activeDeadlineSeconds: 600
""")


@cache
def _output(program: str, *arguments: str) -> str:
    found = shutil.which(program)
    if found is None:
        skip_or_fail(f"no {program} on PATH")
    return subprocess.run([str(found), *arguments], capture_output=True, text=True, timeout=60, check=False).stdout


def _named_files(page: str) -> Iterator[tuple[int, str]]:
    """Below the repository, each with `#` and a heading."""
    for number, line in read_text(page):
        for path, heading in re.findall(r"\]\((?!\w+:)([^)#]*)#?([^)]*)\)", line):
            target = os.path.normpath(Path(page).parent / path) if path else page
            yield number, f"{target}#{heading}"
        for path in re.findall(r"`((?:charts|docs|job|k8s|scripts|tests)/[\w./-]+\.\w+)`", line):
            yield number, f"{path}#"


def _is_there(name: str) -> bool:
    path, _, heading = name.partition("#")
    target = REPOSITORY / path
    return "NAME" in path or (target.exists() and (not heading or heading in _headings(target)))


def _headings(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@cache
def _sources() -> str:
    return "".join(path.read_text() for path in sorted((REPOSITORY / "job").rglob("*.py")))
