"""The command line: settings set apart from options, refusals, help at once, and what `config` prints."""

import argparse
import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from job.commands.cli import _make_parser, parse_command_line
from job.config import field_names, to_text
from job.config_sources import load_config
from job.errors import ConfigError
from tests.conftest import RunJob, job_command, job_environment

COMMANDS = {
    "run": (),
    "verify": ("--run=x",),
    "runs": (),
    "show": ("x",),
    "logs": ("x",),
    "fetch": ("--to=x",),
    "promote": ("x",),
    "rollback": (),
    "data prepare": ("--to=x",),
    "data check": (),
    "store check": (),
    "gc": ("--delete",),
    "config show": (),
    "config schema": (),
}


def commands_of(parser: argparse.ArgumentParser, *, prefix: str = "") -> list[str]:
    """Every command and group of commands that the parser knows."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                found += [prefix + name, *commands_of(inner, prefix=f"{prefix}{name} ")]
    return found


HELPS = ("", *commands_of(_make_parser()))


class TestParsing:
    @pytest.mark.parametrize("command", COMMANDS)
    def test_settings_are_set_apart_from_options(self, command: str) -> None:
        settings = ["--train.epochs=3", "--store.uri", "file:./x", "--model.dropout=0.5"]
        line = parse_command_line([*settings[:1], *command.split(), *settings[1:3], *COMMANDS[command], settings[3]])
        assert (line.command, line.settings) == (command, settings)
        assert line.options.config is None

    @pytest.mark.parametrize(
        ("arguments", "settings"),
        [
            (["run", "--train.learning_rate", "-1"], ["--train.learning_rate", "-1"]),
            (["run", "--run.suffix", "--train.epochs=3"], ["--run.suffix", "--train.epochs=3"]),
            (["run", "--run.suffix", "--config", "a.yaml"], ["--run.suffix"]),
            (["run", "--run.suffix=a=b"], ["--run.suffix=a=b"]),
            (["run", "--train.epochs"], ["--train.epochs"]),
        ],
    )
    def test_value_of_a_setting_goes_with_it(self, arguments: list[str], settings: list[str]) -> None:
        assert parse_command_line(arguments).settings == settings

    def test_value_of_an_option_may_hold_a_dot(self) -> None:
        line = parse_command_line(["run", "--config", "a.yaml", "--train.epochs=3"])
        assert (line.options.config, line.settings) == (Path("a.yaml"), ["--train.epochs=3"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], r"required: COMMAND; see mnist-job --help"),
            (["trian"], r"invalid choice: 'trian' \(choose from .*run.*\); see mnist-job --help"),
            (["data"], r"required: COMMAND; see mnist-job data --help"),
            (["data", "fetch"], r"invalid choice: 'fetch'.*; see mnist-job data --help"),
            (
                ["run", "--epochs=3"],
                r"--epochs: unknown option; did you mean --train\.epochs\?; see mnist-job run --help",
            ),
            (["run", "--aws-secret=hunter2"], r"^--aws-secret: unknown option; see [a-z -]+$"),
            (["run", "--conf=x"], r"--conf: unknown option; see"),
            (["run", "--epochs", "3"], r"--epochs: unknown option; did you mean --train\.epochs\?"),
            (["run", "-train.epochs=3"], r"-train\.epochs: unknown option; did you mean --train\.epochs\?"),
            (["run", "--batch_size=3"], r"did you mean --train\.global_batch_size\?"),
            (["run", "--seed=3"], r"did you mean --run\.seed\?"),
            (["run", "--lr=3"], r"did you mean --train\.learning_rate\?"),
            (["run", "--uri=x"], r"did you mean --data\.uri or --store\.uri\?"),
            (["run", "--config=a", "--config=b"], r"--config: must be given once, received it twice; the second is b"),
            (["verify", "--run=a", "--run=b"], r"--run: must be given once"),
            (["fetch", "--to=a", "--keep=1", "--keep=2"], r"--keep: must be given once"),
            (["run", "stray"], r"stray: unknown argument; see"),
            (["verify"], r"one of the arguments --run --champion is required; see mnist-job verify --help"),
            (["verify", "--run=x", "--champion=y"], r"--champion: not allowed with argument --run"),
            (["fetch"], r"required: --to; see mnist-job fetch --help"),
            (["fetch", "--to=x", "--every=0"], r"--every: must be more than 0 seconds, received 0"),
            (["fetch", "--to=x", "--keep=0"], r"--keep: must be a number of at least 1, received '0'"),
            (["promote"], r"required: RUN; see mnist-job promote --help"),
            (["rollback", "x"], r"x: unknown argument; see"),
            (["runs", "--last=-1"], r"--last: must be a number of at least 1, received '-1'"),
            (
                ["fetch", "--to", "d", "--every", "1e300"],
                r"--every: must be at most 31622400 seconds, received '1e300'",
            ),
            (["verify", "--run", "r", "--wait", "1e400"], r"--wait: must be a number of seconds, received '1e400'"),
            (["runs", "--last", "9" * 5000], r"--last: must have at most 9 digits, received '9{79};"),
            (
                ["gc", "--older-than", "9" * 5000 + "d"],
                r"--older-than: must be an age of at least 1h, .*received '9{79};",
            ),
            (["verify", "--run=x", "--wait=soon"], r"--wait: must be a number of seconds, received 'soon'"),
            (["show"], r"required: RUN; see mnist-job show --help"),
            (["data", "prepare"], r"required: --to; see mnist-job data prepare --help"),
            (["runs", "-o", "xml"], r"-o/--output: invalid choice: 'xml' \(choose from .*table"),
        ],
    )
    def test_bad_command_line_is_refused_with_where_to_look(self, arguments: list[str], message: str) -> None:
        with pytest.raises(ConfigError, match=message) as refused:
            parse_command_line(arguments)
        assert "\n" not in str(refused.value)


class TestProcess:
    @pytest.mark.parametrize(
        "arguments", [[], ["trian"], ["run", "--epochs=3"], ["runs", "--train.epoch=3"], ["run", "--train.epochs=0"]]
    )
    def test_bad_command_line_exits_64_with_one_line(self, arguments: list[str], run_job: RunJob) -> None:
        done = run_job(*arguments)
        told = [event["event"] for event in done.events]
        assert (done.code, told) == (64, ["error", "run.end"] if "run" in arguments else [])
        assert re.fullmatch(r"mnist-job: error 64: [^\n]+\n", done.stderr)

    def test_version_is_printed(self, run_job: RunJob) -> None:
        done = run_job("--version")
        assert done.code == 0
        assert re.fullmatch(r"mnist-job \d+\.\d+\.\d+\S*\n", done.stdout)

    @pytest.mark.parametrize("command", HELPS)
    def test_help_answers_at_once_without_heavy_imports(self, command: str, tmp_path: Path) -> None:
        heavy = {"tensorflow", "keras", "tensorflow_datasets", "kubernetes", "obstore", "numpy", "pydantic", "yaml"}
        started = [sys.executable, "-X", "importtime", *job_command([*command.split(), "--help"])[1:]]
        seconds: list[float] = []
        while len(seconds) < 10 and min(seconds, default=1.0) >= 0.5:  # the promise, best of ten
            begin = time.monotonic()
            done = subprocess.run(started, env=job_environment(), capture_output=True, text=True, check=False)
            seconds.append(time.monotonic() - begin)
        assert done.returncode == 0
        assert f"usage: mnist-job {command}".strip() in done.stdout
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert "job" in imported, "the list of imports was not read"
        assert imported & heavy == set()
        assert min(seconds) < 0.5

    def test_run_help_lists_every_setting(self, run_job: RunJob) -> None:
        done = run_job("run", "--help")
        listed = re.findall(r"^  --([a-z_]+\.[a-z_]+)=\S* .*\w", done.stdout, re.MULTILINE)
        assert listed == field_names()


class TestConfigSchema:
    def test_every_setting_has_a_description_and_nothing_else_is_allowed(self, run_job: RunJob) -> None:
        done = run_job("config", "schema")
        assert done.code == 0
        schema = json.loads(done.stdout)
        assert schema["additionalProperties"] is False
        names = []
        for section, reference in schema["properties"].items():
            definition = schema["$defs"][reference["$ref"].rpartition("/")[2]]
            assert definition["additionalProperties"] is False
            for field, rules in definition["properties"].items():
                names.append(f"{section}.{field}")
                assert rules.get("description"), f"{section}.{field} has no description"
        assert names == field_names()

    @pytest.mark.parametrize(
        ("name", "rules"),
        [
            ("train.epochs", {"minimum": 1, "maximum": 100_000, "default": 20}),
            ("train.optimizer", {"type": "string", "default": "sgd"}),
            ("train.learning_rate", {"exclusiveMinimum": 0, "type": "number"}),
            ("checkpoint.keep", {"minimum": 1}),
        ],
    )
    def test_schema_carries_the_rules(self, name: str, rules: dict[str, object], run_job: RunJob) -> None:
        section, field = name.split(".")
        schema = json.loads(run_job("config", "schema").stdout)
        definition = schema["$defs"][schema["properties"][section]["$ref"].rpartition("/")[2]]
        assert definition["properties"][field].items() >= rules.items()


class TestConfigShow:
    def test_output_loads_back_to_the_same_config_and_names_origins(self, run_job: RunJob, tmp_path: Path) -> None:
        (tmp_path / "a.yaml").write_text("model: {dropout: 0.25}\nrun: {suffix: '007'}\n", encoding="utf-8")
        awkward = '--store.uri=file:./it\'s # a: "folder", of {ours}'
        done = run_job(
            "config",
            "show",
            "--config=a.yaml",
            "--model.hidden_units=64,32",
            "--run.seed=random",
            "--data.cache_dir=~/cache",
            awkward,
            env={"MNIST_TRAIN__EPOCHS": "3"},
        )
        assert (done.code, done.stderr) == (0, "")
        lines = {line.split(":")[0].strip(): line for line in done.stdout.splitlines()}
        assert lines["epochs"].endswith("# MNIST_TRAIN__EPOCHS")
        assert lines["hidden_units"].endswith("# --model.hidden_units")
        assert lines["dropout"].endswith("# a.yaml")
        assert lines["activation"].endswith("# default")

        shown = tmp_path / "shown.yaml"
        shown.write_text(done.stdout, encoding="utf-8")
        config = load_config([], config_file=shown).config
        assert config.store.uri == awkward.partition("=")[2]
        assert (config.train.epochs, config.model.hidden_units, config.run.suffix) == (3, (64, 32), "007")
        assert run_job("config", "show", "--config=shown.yaml").stdout.count("# shown.yaml") == len(field_names())
        assert (
            config
            == load_config(
                [
                    "--model.hidden_units=64,32",
                    "--run.seed=random",
                    "--data.cache_dir=~/cache",
                    "--train.epochs=3",
                    awkward,
                ],
                config_file=tmp_path / "a.yaml",
            ).config
        )

    @pytest.mark.parametrize("source", ["tfds", "digits", "my.data:load"])
    def test_shown_config_gives_the_data_the_same_name(self, source: str, run_job: RunJob, tmp_path: Path) -> None:
        """An own source must not pass for MNIST after its config went through a file."""
        flags = [f"--data.source={source}"]
        shown = tmp_path / "shown.yaml"
        shown.write_text(run_job("config", "show", *flags).stdout, encoding="utf-8")
        assert load_config([], config_file=shown).config.data.name == load_config(flags).config.data.name

    @pytest.mark.parametrize(
        "value", [None, True, 3, 0.1, 1e-7, "", "null", "3", "a b", "#", "a: b", "ü", (64, 32), ()]
    )
    def test_value_is_printed_as_yaml(self, value: object) -> None:
        expected = list(value) if isinstance(value, tuple) else value
        assert yaml.safe_load(f"{to_text(value)} # origin") == expected
        assert "\n" not in to_text(value)
