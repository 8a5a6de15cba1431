"""One bad record in a store harms nobody else: it is named and skipped in tables, 65 where it is needed, never a traceback."""

import json
import logging
import os
import resource
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from job import contract
from job.config import StoreSection
from job.errors import IntegrityError
from job.observe.phases import Phases
from job.registry import champion
from job.registry.retention import apply_retention
from job.runs import checkpoint as checkpoints
from job.runs.goodput import Ledger
from job.store.open import open_store
from job.store.store import Store
from job.training.history import EpochRecord
from tests.job.fuzz import (
    BAD,
    COMMIT,
    HEALTHY,
    OTHER,
    Ended,
    call,
    change_arrays,
    change_head,
    copy_store,
    mutations,
    rewrite,
)
from tests.torture.campaign import fast_folder

_ARCHIVE = Path(__file__).parent / "upgrade" / "store.tar.xz"
_FIRST, _SECOND = (contract.champion_key("digits", version=version) for version in (1, 2))
_GATE, _RUN = contract.gate_key(BAD), contract.run_key(BAD)
_DIGITS = "--promotion.model_name=digits"
_AS_NEW = "--promotion.model_name=new"
"""A name without a champion: the gate looks at the run's own predictions."""
_DOCUMENTED = {0, 65, 66, 73, 78}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked store, all of it old."""
    folder = tmp_path_factory.mktemp("template")
    with tarfile.open(_ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return folder


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """A folder where thousands of stores are quickly made."""
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        yield Path(folder)


@pytest.fixture
def root(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the store; the working folder is beside it."""
    copy_store(template, tmp_path / "store")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "store"


def _open(root: Path) -> Store:
    return open_store(StoreSection(uri=f"file:{root}", deadline_seconds=2), environ={})


def _call(root: Path, *command: str) -> Ended:
    return call(*command, f"--store.uri=file:{root}")


def _line_of(run: str, ended: Ended) -> str:
    return next((line for line in ended.output.splitlines() if line.startswith(run)), "")


def _file_of(root: Path, name: str, *, run: str = BAD) -> str:
    """The key of a file of the run's attempt, or of its log or checkpoint."""
    return next((root / contract.run_prefix(run)).rglob(name)).relative_to(root).as_posix()


def _with(**changes: Any) -> Callable[[bytes], bytes]:
    """Change values of a JSON object, by their ways: `metrics__test_loss`."""

    def change(data: bytes) -> bytes:
        content = json.loads(data)
        for name, value in changes.items():
            *way, last = name.split("__")
            at = content
            for step in way:
                at = at[step]
            at[last] = value
        return json.dumps(content).encode()

    return change


def _arrays(**changes: Any) -> Callable[[bytes], bytes]:
    return lambda data: change_arrays(data, changes)


def _rename(data: bytes, name: str) -> bytes:
    """The COMMIT with a first file of its model that is called so; its content is never asked for."""
    record = json.loads(data)
    first = next(file for file in record["files"] if file["key"].endswith("/saved_model.pb"))
    key = first["key"].replace("saved_model.pb", name)
    record["files"] = [first | {"key": key}, *record["files"]]
    return json.dumps(record).encode()


_ANCHOR = {"evaluation_digest": "e" * 150_000, "metric": "accuracy", "value": 0.5, "run": BAD}
_WRONG = {"position": 1, "label": 10, "predicted": 0, "probability": 1}
"""A mistake about a class that does not exist."""
_REFUSED: list[tuple[str, str, Callable[[bytes], bytes], tuple[str, ...], str]] = [
    ("COMMIT of 1,000 [", COMMIT, lambda _: b"[" * 1000, ("show", BAD), "nested deeper than 64"),
    ("5,000 digits", COMMIT, lambda data: b'{"x":' + b"9" * 5000 + b"," + data[1:], ("show", BAD), "of 5000 digits"),
    ("a key twice", COMMIT, lambda data: b'{"run":"y",' + data[1:], ("show", BAD), "'run' stands there twice"),
    ("list for loss", COMMIT, _with(metrics__test_loss=[1]), ("report", BAD), "its metrics.test_loss should be"),
    ("accuracy 1e308", COMMIT, _with(metrics__test_accuracy=1e308), ("show", BAD), "its metrics.test_accuracy should be"),
    ("number for counters", COMMIT, _with(counters=7), ("show", BAD), "its counters should be"),
    ("list for config", COMMIT, _with(config=[]), ("report", BAD), "its config should be a valid dictionary, received"),
    ("surrogate", COMMIT, _with(committed="\ud800"), ("report", BAD), "half of a surrogate pair"),
    ("attempt with slashes", COMMIT, _with(attempt="../x"), ("promote", BAD), "its attempt must be the name"),
    ("run of another", COMMIT, _with(run=OTHER), ("show", BAD), f"it is of run '{OTHER}'"),
    ("newer format", COMMIT, _with(format=2), ("show", BAD), "its format should be 1, received 2"),
    ("verdict", _GATE, _with(verdict=[]), ("report", BAD), "its verdict should be"),
    ("time of run.json", _RUN, _with(created={}), ("promote", BAD, "--force"), "its created should be"),
    ("champion of [", _SECOND, lambda _: b"[" * 1000, ("promote", OTHER), "or delete it to go on from the version before"),
    ("champion's accuracy", _SECOND, _with(accuracy="x"), ("fetch", "--to=served"), "its accuracy should be"),
    ("champion's time", _SECOND, _with(created=7), ("promote", OTHER), "its created should be"),
    ("anchor", _SECOND, _with(best=[["e", -1e300]]), ("promote", OTHER), "its best.0.1 should be"),
    ("probabilities 1-D", "predictions.safetensors", _arrays(probabilities=np.zeros(9, np.float32)), ("promote", BAD, _AS_NEW),
     "probabilities must be float32 [N, C], received float32 [9]"),
    ("labels of no class", "predictions.safetensors", _arrays(labels=np.full(360, 99)), ("promote", BAD, _AS_NEW),
     "labels must be 0 to 9, received 99 to 99"),
    ("labels of floats", "predictions.safetensors", _arrays(labels=np.zeros(360)), ("promote", BAD, _AS_NEW),
     "labels must be int64 [360], received float64 [360]"),
    ("no examples", "predictions.safetensors",
     _arrays(probabilities=np.zeros((0, 10), np.float32), labels=np.zeros(0, np.int64)), ("promote", BAD, _AS_NEW),
     "received float32 [0, 10]"),
    ("probabilities of NaN", "predictions.safetensors", _arrays(probabilities=np.full((360, 10), np.nan, np.float32)),
     ("promote", BAD, _AS_NEW), "probabilities must be finite"),
    ("samples of no pixels", "predictions.safetensors", _arrays(sample_images=np.zeros((4, 8, 0), np.uint8)),
     ("promote", BAD, _AS_NEW), "sample_images must hold an image, received uint8 [4, 8, 0]"),
    ("class names", "predictions.safetensors",
     lambda data: change_head(data, lambda head: head | {"__metadata__": {"predictions": '{"class_names":[{}]}'}}),
     ("promote", BAD, _AS_NEW), "class_names must be a list of texts"),
    ("history", "metrics.json", _with(history=7), ("report", BAD), "its history should be"),
    ("champion's anchors", _SECOND, _with(anchors=[_ANCHOR] * 19), ("promote", OTHER), "its anchors.0.evaluation_digest should"),
    ("name of 1,024 characters", COMMIT, lambda data: _rename(data, "/".join(["d" * 243] * 4)), ("verify", "--run", BAD),
     "its files.0.key must have 1024 bytes at most, 255 between two slashes"),
    ("name of 256 bytes", COMMIT, lambda data: _rename(data, "ü" * 128), ("verify", "--run", BAD), "255 between two slashes"),
    ("file in a file", COMMIT, lambda data: _rename(data, "saved_model.pb/x"), ("verify", "--run", BAD),
     "two files in one place"),
    ("class names of 5 MB", "predictions.safetensors", lambda data: change_head(
        data, lambda head: head | {"__metadata__": {"predictions": json.dumps({"class_names": ["x" * 5_000_000] * 10})}}),
     ("promote", BAD, _AS_NEW), "class_names must have 1000 characters at most, received one of 5000000"),
    ("label of a mistake", "metrics.json", _with(test__wrong=[_WRONG]),
     ("report", BAD), "must name labels below the number of its classes, 10"),
]  # fmt: skip
"""(what, key or name of a file of the run, change, a command that needs the record, what it says)."""


@pytest.mark.security("S5")
@pytest.mark.parametrize(("what", "key", "change", "command", "said"), _REFUSED, ids=[case[0] for case in _REFUSED])
def test_bad_record_is_65_where_it_is_needed_and_skipped_in_the_table(
    what: str, key: str, change: Callable[[bytes], bytes], command: tuple[str, ...], said: str, root: Path
) -> None:
    key = key if "/" in key else _file_of(root, key)
    rewrite(root, key, change((root / key).read_bytes()))
    needed = _call(root, *command)
    assert (needed.code, "Traceback" in needed.error) == (65, False), needed.error
    assert said in needed.error, needed.error
    assert len(needed.error.splitlines()[-1]) < 500, needed.error
    table = _call(root, "runs")
    assert table.code == 0, table.error
    assert "0.9306" in _line_of(HEALTHY, table)
    if key in (COMMIT, _GATE):
        assert "damaged" in _line_of(BAD, table)
        assert "commit.damaged" in table.error and BAD in table.error
    if key in (_FIRST, _SECOND):
        assert "champion.skipped" in table.error and key in table.error


@pytest.mark.security("S5")
def test_verify_reads_no_predictions_of_more_than_2_gb(root: Path) -> None:
    commit = json.loads((root / COMMIT).read_text())
    for file in commit["files"]:
        if file["key"].endswith("predictions.safetensors"):
            file["num_bytes"] = 2**31 + 1
    rewrite(root, COMMIT, json.dumps(commit).encode())
    needed = _call(root, "verify", f"--run={BAD}")
    assert (needed.code, "has 2147483649 bytes; at most 2147483648 are read" in needed.error) == (65, True), (
        needed.error
    )


@pytest.mark.security("S5")
@pytest.mark.parametrize("key", [COMMIT, _GATE, _SECOND])
def test_record_that_is_too_long_is_not_read(key: str, root: Path) -> None:
    """Two gigabytes, of which the file system keeps none."""
    with open(root / key, "wb") as file:
        file.truncate(2_000_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    table = _call(root, "runs")
    assert (table.code, "2000000000 bytes; at most 4000000 are read" in table.error) == (0, True), table.error
    assert "0.9306" in _line_of(HEALTHY, table)
    grown_kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown_kilobytes < 100_000


@pytest.mark.security("S5")
def test_log_segment_that_is_too_long_is_named_and_the_others_are_printed(root: Path) -> None:
    with open(root / contract.log_key(BAD, attempt_id="zz", number=0), "wb", opener=_making_folders) as file:
        file.truncate(2_000_000_000)
    logs = _call(root, "logs", BAD)
    assert logs.code == 0
    assert (logs.output.count("epoch.end"), "logs.skipped" in logs.error) == (2, True)


def _making_folders(path: str, flags: int) -> int:
    Path(path).parent.mkdir(parents=True)
    return os.open(path, flags)


@pytest.mark.security("S5")
def test_retention_goes_on_beside_a_bad_champion_and_keeps_what_it_may_name(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Only a claim tells that version 2 names `old.second`."""
    rewrite(root, _SECOND, b"[" * 1000)
    os.utime(root / contract.commit_key(HEALTHY), (5e8, 5e8))
    with caplog.at_level(logging.WARNING, logger="job"):
        apply_retention(_open(root), "digits", keep_runs=1, keep_versions=1)
    assert "champion.skipped" in [record.getMessage() for record in caplog.records]
    state = {line.split()[0]: line.split()[1] for line in _call(root, "runs").output.splitlines()[1:]}
    assert state == {BAD: "committed", HEALTHY: "committed", "old.refused": "committed", "old.half": "interrupted"}


@pytest.mark.security("S5")
@pytest.mark.parametrize(
    "where", ["models/evil/champion", "models/evil/versions", "models/digits/versions", "runs/evil/x", "x"]
)
def test_link_in_the_folder_of_one_model_stops_no_command_of_another(where: str, root: Path) -> None:
    """What it leads to is neither listed nor deleted."""
    outside = root.parent / "outside" / "7"
    outside.mkdir(parents=True)
    (outside / "0000000001.json").write_bytes(b"{}")
    if (root / where).exists():
        shutil.rmtree(root / where)
    (root / where).parent.mkdir(parents=True, exist_ok=True)
    (root / where).symlink_to(outside.parent)
    old = ("--older-than=1h",)
    commands = (("runs",), ("show", HEALTHY), ("fetch", "--to=served", _DIGITS), ("gc", *old), ("gc", "--delete", *old))
    for command in commands:
        ended = _call(root, *command)
        assert (ended.code, "Traceback" in ended.error) == (0, False), ended.error
        assert ended.error.count("store.passed_over") <= 1
    apply_retention(_open(root), "digits", keep_runs=1, keep_versions=1)
    assert (root / contract.commit_key(HEALTHY)).exists()
    assert (outside / "0000000001.json").exists()
    assert (root / where).is_symlink()


@pytest.mark.security("S5")
def test_retention_passes_over_a_run_that_cannot_be_marked(root: Path) -> None:
    for run in (OTHER, "old.refused"):
        (root / contract.run_prefix(run) / "outside").mkdir()
    (root / contract.retirements_prefix(OTHER).rstrip("/")).symlink_to(root)
    before = (root / contract.commit_key(OTHER)).read_bytes()
    apply_retention(_open(root), "digits", keep_runs=1, keep_versions=1)
    assert (root / contract.commit_key(OTHER)).read_bytes() == before
    assert b"abandoned" in (root / contract.commit_key("old.refused")).read_bytes()


@pytest.mark.security("S5")
def test_nothing_is_written_that_could_not_be_read_again(root: Path) -> None:
    newest = champion.read_newest(_open(root), "digits")
    assert newest
    before = sorted(root.rglob("*"))
    with pytest.raises(IntegrityError, match="its why should have at most 10000 characters"):
        champion.move(_open(root), "digits", before=newest, to=newest.to, by="promote", who="me", why="x" * 10_001)
    assert sorted(root.rglob("*")) == before
    ended = _call(root, "promote", OTHER, "--force", f"--why={'x' * 1_001}")
    assert (ended.code, "--why" in ended.error) == (64, True), ended.error
    assert sorted(root.rglob("*")) == before


@pytest.mark.security("S5")
def test_numbers_of_a_validation_split_that_are_null_count_as_absent(root: Path) -> None:
    rewrite(root, COMMIT, _with(metrics__val_loss=None)((root / COMMIT).read_bytes()))
    key = _file_of(root, "metrics.json")
    history = json.loads((root / key).read_bytes())["history"]
    nothing = dict.fromkeys(("test_loss", "test_accuracy", "val_loss", "val_accuracy"))
    rewrite(root, key, _with(history=[history[0] | nothing, *history[1:]])((root / key).read_bytes()))
    report = _call(root, "report", BAD)
    assert (report.code, "Traceback" in report.error) == (0, False), report.error
    page = Path("report.html").read_text()
    assert "<b>0.5676</b><span>test loss" in page
    assert "validation loss" not in page and "validation accuracy" not in page


@pytest.mark.security("S5")
@pytest.mark.parametrize("seconds", [-99_999_999_999, 999_999_999_999])
def test_run_of_a_year_that_no_calendar_has_stops_no_gc(seconds: int, root: Path) -> None:
    """Some file systems cut such times."""
    for path in (root / contract.run_prefix("old.half")).rglob("*"):
        os.utime(path, (0, seconds))
    ended = _call(root, "gc", "--older-than=1h")
    assert (ended.code, "Traceback" in ended.error) == (0, False), ended.error
    logs = _call(root, "runs")
    assert logs.code == 0


@pytest.mark.security("S5")
def test_rollback_to_a_named_run_passes_over_a_bad_record(root: Path) -> None:
    _call(root, "promote", OTHER, "--force")
    rewrite(root, _SECOND, b"{}")
    back = _call(root, "rollback", f"--to={BAD}")
    assert (back.code, f"run {BAD}, version 4" in back.output) == (0, True), back.error
    unknown = _call(root, "rollback")
    assert unknown.code == 0  # version 3 can be read: it is the one before


@pytest.mark.security("S5")
@pytest.mark.parametrize(
    "change",
    [
        _with(meta__ledger__seconds=[]),
        _with(meta__history=[{"epoch": 1}]),
        _with(meta=[]),
        _with(step="90"),
        _with(meta__ledger__seconds={"train": 1e308, "zz": 1e308}),
        _with(meta__ledger__chain=[{"attempt": "a", "from_step": 0, "computed_on": {"devices": [float("inf")]}}]),
        _with(meta__ledger__saved_seconds=1e300),
        _with(meta__epoch_seconds=float("nan")),
        lambda data: data.replace(b'"loss": ', b'"loss": Infinity, "was": ', 1),
        _with(format=3),
        lambda _: b"[" * 1000,
        lambda _: b"null",
    ],
)
def test_bad_checkpoint_is_passed_over(change: Callable[[bytes], bytes], root: Path) -> None:
    key = _file_of(root, "*.safetensors", run="old.half")
    data = (root / key).read_bytes()

    def in_head(head: Any) -> Any:
        said = change(head["__metadata__"]["checkpoint"].encode())
        return head | {"__metadata__": {"checkpoint": said.decode()}}

    rewrite(root, key, change_head(data, in_head))
    with pytest.raises(IntegrityError, match="none of its 1 checkpoints is intact"):
        _resume(root)
    (root / key).write_bytes(data)
    _resume(root)


def _resume(root: Path) -> None:
    """What an attempt reads of `old.half` before it trains on."""
    store = _open(root)
    recorded = json.loads((root / contract.run_key("old.half")).read_bytes())
    restored = checkpoints.load_newest(
        store, "old.half", result_digest=recorded["result_digest"], max_bytes=checkpoints.max_bytes(weight_bytes=26_000)
    )
    assert restored
    [EpochRecord.of(record) for record in restored.meta["history"]]
    ledger = Ledger(phases=Phases(), attempt="a", num_attempts=2, computed_on={}, first_started_seconds=0.0)
    ledger.start(restored.meta["ledger"], step=restored.step, total_steps=2700, interval_seconds=60.0)
    json.dumps(ledger.to_meta(is_end=False) | ledger.goodput(), allow_nan=False)


def _retention(root: Path) -> None:
    apply_retention(_open(root), "digits", keep_runs=1, keep_versions=1)


_READERS: dict[str, tuple[tuple[str, ...] | Callable[[Path], None], ...]] = {
    COMMIT: (
        *(
            ("show", BAD),
            ("report", BAD),
            ("gc", "--older-than=1h", "--delete"),
            ("promote", BAD, _AS_NEW),
            ("promote", OTHER),
        ),
        *(("promote", BAD, "--force"), ("rollback",), _retention),
    ),
    _GATE: (("show", BAD), ("report", BAD), ("promote", BAD)),
    _RUN: (("promote", BAD), ("gc", "--older-than=1h"), ("show", BAD)),
    _FIRST: (("rollback",), ("promote", OTHER), ("show", BAD), _retention),
    _SECOND: (("rollback",), ("promote", OTHER), ("fetch", "--to=served"), _retention, ("promote", OTHER, _AS_NEW)),
    "metrics.json": (("report", BAD),),
    "predictions.safetensors": (("promote", BAD, _AS_NEW), ("promote", BAD)),
    "attempt.json": (("gc", "--older-than=1h"), ("promote", BAD, "--force")),
    "000000.jsonl": (("logs", BAD),),
    "checkpoint": (_resume, ("gc", "--older-than=1h")),
}
"""Key or name of the mutated object -> what reads it, one of which is drawn."""
_READ_ONLY = (("show", BAD), ("report", BAD), ("logs", BAD), ("gc", "--older-than=1h"), _resume)


@pytest.mark.security("S5")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.full) for part in range(1, 5))])
def test_no_mutated_record_ends_in_a_traceback_or_hides_another_run(
    template: Path, in_memory: Path, monkeypatch: pytest.MonkeyPatch, is_full: bool, part: int
) -> None:
    """In the full run 2,500 in five parts, which are tested side by side."""
    ended, root = Counter[int](), in_memory / "store"
    copy_store(template, root)
    monkeypatch.chdir(in_memory)

    @seed(part)
    @settings(
        max_examples=500 if is_full else 200,
        phases=[Phase.generate],
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def fuzz(data: st.DataObject) -> None:
        kind = data.draw(st.sampled_from(sorted(_READERS)))
        key = kind if "/" in kind else _find(root, kind)
        reader = data.draw(st.sampled_from(_READERS[kind]), label="reader")
        undo = rewrite(root, key, data.draw(mutations(key, (root / key).read_bytes()), label=key))
        ended[_ends_well(root, reader)] += 1
        table = _call(root, "runs")
        assert (table.code, "Traceback" in table.error) == (0, False), table.error
        assert "0.9306" in _line_of(HEALTHY, table), table.output
        assert "committed" in _line_of(HEALTHY, table), table.output
        if reader in _READ_ONLY:
            undo()
        else:
            shutil.rmtree(root)
            copy_store(template, root)

    fuzz()
    print(f"\n{ended.total()} mutated records; exit codes {dict(sorted(ended.items()))}")


def _find(root: Path, kind: str) -> str:
    return _file_of(root, "*.safetensors", run="old.half") if kind == "checkpoint" else _file_of(root, kind)


def _ends_well(root: Path, reader: tuple[str, ...] | Callable[[Path], None]) -> int:
    """The exit code of one that reads the record: a documented one, without a traceback."""
    if isinstance(reader, tuple):
        done = _call(root, *reader)
        assert done.code in _DOCUMENTED and "Traceback" not in done.error, done.error
        return done.code
    try:
        reader(root)
    except IntegrityError:
        return IntegrityError.code
    return 0
