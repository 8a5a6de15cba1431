"""The command reproduce: trains again what a COMMIT says, in a process and a store of its own, and compares the digests.

The settings that decide the result, and the threads, come from the COMMIT. What a COMMIT says about code and places of this
machine is only used when the user names it too: whoever may write the store may have written the COMMIT.
"""

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from job import clock, records, strict_yaml
from job.commands.cli import CommandLine
from job.commands.lookup import configured_store, find_committed
from job.config import REFERENCE_ONLY, SOURCES, Config, to_text
from job.config_sources import LoadedConfig, parse_flags
from job.contract import ENV_PREFIX, ExitCode
from job.errors import ConfigError, ConflictError, IntegrityError
from job.masking import without_secrets
from job.runs.identity import is_result_of
from job.runs.lineage import Lineage, bits_depend_on
from job.runs.read import CommittedRun, read_commit
from job.store.open import open_store
from job.texts import one_line
from job.uris import to_store_uri

_DIGESTS = ("result_digest", "weights_digest", "state_digest")
_OWN_SECTIONS = ("run.", "store.", "promotion.")
"""Of the command itself: where the COMMIT is read, never how the run is made again."""
_KEEP_ALL_RUNS = 2**31 - 1
_NAMED_AGAIN = ("model.build", "model.args", "data.source", "data.uri", "data.args")
"""Settings that decide which code runs, what it is called with, and which files and buckets are read."""
_MAX_FLAG_CHARACTERS = 1000
_JSON_TYPES = {bool: "bool", int: "number", float: "number", str: "text", tuple: "list", list: "list", dict: "object"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """Two COMMITs of the same settings side by side.

    Attributes:
        different: names of the digests that differ.
        hardware: what the bits depend on and differs too: name -> (before, now).
    """

    different: tuple[str, ...]
    hardware: Mapping[str, tuple[object, object]]

    def check(self, *, run: str) -> None:
        """Raises:
        ConflictError: something differs; says what, and whether the hardware explains it.
        """
        if not self.different:
            return
        if "result_digest" in self.different:
            why = (
                "other data, settings or code of model.build than the run had; name the same data with --data.source and "
                "--data.uri, and check out the code that mnist-job show tells"
            )
        elif self.hardware:
            changed = "; ".join(f"{name} was {before}, is {now}" for name, (before, now) in self.hardware.items())
            why = f"this machine computes other bits: {changed}"
        else:
            why = "although machine, versions and threads are the same; look at bit_identical in mnist-job show"
        raise ConflictError(f"run {run} was not reproduced: {', '.join(self.different)} differ: {why}")


def reproduce(line: CommandLine, loaded: LoadedConfig) -> int:
    """Train again, and say whether everything is equal."""
    committed = find_committed(configured_store(loaded), line.options.run)
    _check_named_again(loaded, committed, flags=line.settings)
    _check_file(loaded, committed, path=line.options.config)
    return reproduce_run(loaded.config, committed, to_uri=line.options.to, settings=line.settings)


def _check_file(loaded: LoadedConfig, committed: CommittedRun, *, path: Path | None) -> None:
    """Raises:
    ConfigError: a setting of the file decides the result and is not what the COMMIT says, which is what is trained again.
    """
    given, asked = loaded.config.model_dump(mode="json"), committed.record["config"]
    for section, fields in settings_of(committed).items():
        for field, resolved in fields.items():
            name, value = f"{section}.{field}", given[section][field]
            is_of_file = path is not None and loaded.origins.get(name) == str(path)
            if is_of_file and value not in (resolved, asked.get(section, {}).get(field)):
                raise ConfigError(
                    f"{name}: must be what the COMMIT says ({resolved!r}), received {value!r} in {path}; leave it out of "
                    "the file, or give it as a flag"
                )


def _check_named_again(loaded: LoadedConfig, committed: CommittedRun, *, flags: Sequence[str]) -> None:
    """Raises:
    ConfigError: the COMMIT names code or a place that neither flags, variables nor the file of the user name; says the flags.
    IntegrityError: it holds settings that no run can have.
    """
    recorded = _recorded_settings(committed).model_dump(mode="json")
    given = loaded.config.model_dump(mode="json")
    missing = []
    for name in _NAMED_AGAIN:
        section, _, field = name.partition(".")
        value = recorded[section][field]
        is_named = name in parse_flags(flags) or (name in loaded.origins and given[section][field] == value)
        is_harmless = not value or (name == "data.source" and value in SOURCES)
        if not is_harmless and not is_named:
            missing.append(_to_flag(name, value))
    if missing:
        raise ConfigError(
            f"run {committed.run}: code and places that a COMMIT names are only used when you name them too; if they are "
            f"what you expect, add {' '.join(missing)}"
        )


def _recorded_settings(committed: CommittedRun) -> Config:
    """What `settings_of` gives, by the rules of every setting."""
    settings = settings_of(committed)
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:2])
        raise IntegrityError(
            f"the COMMIT of run {committed.run} holds settings that no run can have: {where}: {first['msg']}"
        ) from error
    _check_types(settings, config, run=committed.run)
    return config


def _check_types(settings: Mapping[str, Mapping[str, Any]], config: Config, *, run: str) -> None:
    """Refuse what a flag would be converted from, such as true for 1: a run records numbers as numbers."""
    known = config.model_dump(mode="json")
    for section, fields in settings.items():
        for name, value in fields.items():
            wanted = known[section].get(name, value)
            if _JSON_TYPES.get(type(value)) != _JSON_TYPES.get(type(wanted)):
                raise IntegrityError(
                    f"the COMMIT of run {run} holds settings that no run can have: {section}.{name} is {records.show(value)}"
                )


def _to_flag(name: str, value: object) -> str:
    """What the user can type, in a shell too; `...` for what is too long, or holds credentials, as older versions let it."""
    text = value if isinstance(value, str) else to_text(value)
    is_shown = len(text) <= _MAX_FLAG_CHARACTERS and without_secrets(value) == value
    return f"--{name}={shlex.quote(text) if is_shown else '...'}"


def reproduce_run(config: Config, committed: CommittedRun, *, to_uri: str | None, settings: Sequence[str]) -> int:
    """Train again and say whether everything is equal; returns 0, or the exit code of a training that failed.

    Args:
        config: how stores are reached, and where prepared data is.
        to_uri: folder or store for the new run; None: a temporary folder.
        settings: flags of the user, such as where the data is now.

    Raises:
        ConflictError: something differs.
    """
    run_id = f"local.reproduced-{clock.token(4)}"
    with tempfile.TemporaryDirectory(prefix="mnist-reproduce-") as folder:
        store = config.store.model_copy(update={"uri": to_store_uri(to_uri or f"{folder}/store")})
        sections = settings_of(committed)
        sections["run"]["id"] = run_id
        sections["data"]["cache_dir"] = str(config.data.cache_dir) if config.data.cache_dir else None
        sections |= {
            "store": store.model_dump(mode="json"),
            "promotion": {"enabled": False},
            "retention": {"keep_runs": _KEEP_ALL_RUNS},
            "observe": {"metrics_port": 0},
        }
        path = Path(folder) / "settings.yaml"
        path.write_text(strict_yaml.dump(sections), encoding="utf-8")
        given = [f"--{name}={value}" for name, value in parse_flags(settings).items()]
        code = _train(path, [flag for flag in given if not flag.removeprefix("--").startswith(_OWN_SECTIONS)])
        if code:
            print(f"mnist-job: run {committed.run} was not reproduced: the training ended with {code}", file=sys.stderr)
            return code
        made = read_commit(open_store(config.store, environ=os.environ, uri=store.uri), run_id)
    if made is None:
        raise IntegrityError(f"run {committed.run} was not reproduced: the training ended well and left no COMMIT")
    compare(committed, made).check(run=committed.run)
    print(f"reproduced: run {committed.run}")
    for name in _DIGESTS:
        print(f"  {name.replace('_', ' '):<14}  {made.record[name]}: equal")
    return ExitCode.OK


def _train(config_file: Path, flags: Sequence[str]) -> int:
    """One run in a process of its own, whose log goes to stderr; returns its exit code."""
    # -P: no working folder on the path, and with it no store that is below it.
    command = [sys.executable, "-P", "-m", "job", "run", f"--config={config_file}", *flags]
    # The environment would come before the COMMIT's settings; and one process trains all replicas.
    environ = {name: value for name, value in os.environ.items() if not name.startswith((ENV_PREFIX, "TF_CONFIG"))}
    process = subprocess.Popen(command, env=environ, stdout=sys.stderr)  # noqa: S603 - settings are no shell text
    try:
        code = process.wait()
    finally:  # when this process is told to stop: its folder is removed after this
        process.terminate()
        process.wait()
    return code if code >= 0 else 128 - code


def settings_of(committed: CommittedRun) -> dict[str, dict[str, Any]]:
    """The settings that make the same result, from what was resolved when the run was made.

    Raises:
        IntegrityError: the COMMIT does not hold them.
    """
    try:
        record = committed.record
        config, inputs, threads = record["config"], record["inputs"], record["lineage"]["threads"]
        Lineage.of(record["lineage"])  # compared after the training: what is missing is to be known before
        data = {name: value for name, value in config["data"].items() if name != "cache_dir"}
        return {
            "run": {"seed": inputs["seed"]},
            "data": data,
            "model": _model_settings(inputs["model"]),
            "train": inputs["train"],
            "cluster": {
                "cpu_replicas": _replicas_here(record),
                "intra_op_threads": threads["intra_op"],
                "inter_op_threads": threads["inter_op"],
            },
        }
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else one_line(error)
        raise IntegrityError(f"the COMMIT does not say how its run was made: {reason}") from error


def _model_settings(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Older versions ignored settings of the reference model beside `model.build`, which are refused now."""
    return {name: value for name, value in recorded.items() if not (recorded["build"] and name in REFERENCE_ONLY)}


def _replicas_here(record: Mapping[str, Any]) -> int:
    """All replicas of the run in one process: on CPUs their place changes no bit. GPUs are counted by what is visible here."""
    if any("GPU" in name for name in record["lineage"]["devices"]):
        return 1
    cluster = record["config"]["cluster"]
    return int(record["inputs"].get("replicas", cluster["cpu_replicas"]))


def _agree(digest: str, before: CommittedRun, now: CommittedRun) -> bool:
    if before.record.get(digest) == now.record.get(digest):
        return True
    if digest == "state_digest":  # Keras may have counted other layers before
        named = before.record.get(f"{digest}_by_position")
        return named is not None and named == now.record.get(f"{digest}_by_position")
    return digest == "result_digest" and is_result_of(now.record.get("inputs", {}), before.record)


def compare(before: CommittedRun, now: CommittedRun) -> Reproduction:
    """What two COMMITs differ in."""
    old, new = (bits_depend_on(Lineage.of(run.record["lineage"])) for run in (before, now))
    return Reproduction(
        different=tuple(name for name in _DIGESTS if not _agree(name, before, now)),
        hardware={
            name: (old.get(name), new.get(name)) for name in old.keys() | new.keys() if old.get(name) != new.get(name)
        },
    )
