"""The config schema: order of its sources, everything it refuses, and what it prints."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from job.config import Config, field_names, to_text
from job.config_sources import LoadedConfig, load_config
from job.errors import ConfigError

# Valid values of every setting, as text: in the YAML file, in the environment, as a flag. Neighbours differ.
SAMPLES = {
    "run.id": ("file", "environment", "flag"),
    "run.seed": ("1", "random", "3"),
    "data.source": ("digits", "tfds", "my.data:load"),
    "data.uri": ("folder", "s3://bucket/data", "file:./data"),
    "data.dataset": ("fashion_mnist", "kmnist", "emnist/digits"),
    "model.build": ("a.b:c", "d:e", "f.g.h:i"),
    "model.hidden_units": ("[8, 16]", "32,64", "[128, 256, 512]"),
    "model.activation": ("relu", "tanh", "gelu"),
    "model.dropout": ("0.1", "0.2", "0.3"),
    "train.learning_rate": ("0.1", "1e-3", "3"),
    "train.precision": ("bfloat16", "float32", "bfloat16"),
    "train.compile": ("xla", "graph", "auto"),
    "cluster.peer_timeout_seconds": ("10", "20.5", "60"),
    "cluster.expected_gpus": ("1", "0", "8"),
    "checkpoint.interval_seconds": ("0.5", "2", "3"),
    "checkpoint.final_save_seconds": ("1", "2.5", "3"),
    "store.uri": ("file:./a", "s3://bucket/prefix", "gs://bucket"),
    "store.account_name": ("account1", "account2", "account3"),
    "store.endpoint": ("http://a", "https://b:9000", "http://c/"),
    "promotion.model_name": ("a", "b.c", "d-e"),
    "promotion.max_accuracy_drop": ("0.1", "0", "1"),
    "promotion.metric": ("auc", "f1_macro", "top_3_accuracy"),
    "observe.metrics_port": ("0", "1", "65535"),
    "observe.metrics_address": ("127.0.0.1", "::1", "0.0.0.0"),
    "observe.pushgateway_url": ("http://a", "http://b", "http://c"),
    "observe.log_format": ("json", "text", "auto"),
    **dict.fromkeys(("run.suffix", "store.region"), ("a", "b", "c")),
    "data.max_bytes": ("1", "1000", "10000000000"),
    **dict.fromkeys(("data.cache_dir", "observe.termination_log"), ("a", "/b", "./c")),
    **dict.fromkeys(("data.train_examples", "data.test_examples"), ("1", "2", "3")),
    **dict.fromkeys(("train.epochs", "train.global_batch_size"), ("1", "2", "3")),
    **dict.fromkeys(
        [f"cluster.{name}" for name in ("workers", "cpu_replicas", "intra_op_threads", "inter_op_threads")],
        ("1", "2", "3"),
    ),
    **dict.fromkeys(("checkpoint.keep", "retention.keep_runs", "retention.keep_versions"), ("1", "2", "3")),
    **dict.fromkeys(
        ("cluster.start_timeout_seconds", "store.timeout_seconds", "store.deadline_seconds"), ("1", "2", "3")
    ),
    **dict.fromkeys(
        [f"promotion.{name}" for name in ("min_accuracy", "min_class_recall", "significance")], ("0", "0.1", "1")
    ),
    **dict.fromkeys(
        ("run.skip_if_unchanged", "store.path_style", "promotion.refused_is_failure"), ("true", "false", "true")
    ),
    **dict.fromkeys(("promotion.enabled", "observe.report"), ("false", "true", "false")),
    "observe.tensorboard": ("true", "false", "true"),
    "observe.stall_timeout_seconds": ("1", "2", "3"),
    **dict.fromkeys(("data.args", "model.args"), ("{a: 1}", '{"a": [2, "x"]}', "{b: null}")),
    "train.optimizer": ("adamw", "lion", "nesterov"),
    "train.schedule": ("cosine", "constant", "cosine"),
    "train.class_weights": ("balanced", "none", "balanced"),
    "train.metrics": ("[auc]", "top_3_accuracy,auc", "f1_macro"),
    "train.monitor": ("val_accuracy", "val_loss", "val_accuracy"),
    "train.keep": ("best", "last", "best"),
    **dict.fromkeys(
        [f"train.{name}" for name in ("warmup_steps", "step_epochs", "evaluate_every", "early_stopping_patience")],
        ("1", "2", "3"),
    ),
    **dict.fromkeys(
        ["data.validation_fraction"]
        + [
            f"train.{name}"
            for name in ("weight_decay", "clip_norm", "step_factor", "label_smoothing", "early_stopping_min_delta")
        ],
        ("0.1", "0.2", "0.3"),
    ),
}
COMPANY = {
    "data.uri": ("--data.source=idx",),
    "data.args": ("--data.source=a:b",),
    "model.args": ("--model.build=a:b",),
    "train.step_epochs": ("--train.schedule=step",),
    "train.step_factor": ("--train.schedule=step", "--train.step_epochs=1"),
    "train.early_stopping_patience": ("--data.validation_fraction=0.1",),
    "train.early_stopping_min_delta": ("--data.validation_fraction=0.1", "--train.early_stopping_patience=1"),
    "train.keep": ("--data.validation_fraction=0.1",),
}
"""Settings that are refused alone -> what has to come with them."""


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.upper().startswith("MNIST_")]:
        monkeypatch.delenv(name)


def variable_of(name: str) -> str:
    return "MNIST_" + name.upper().replace(".", "__")


def value_of(loaded: LoadedConfig, name: str) -> Any:
    section, field = name.split(".")
    return getattr(getattr(loaded.config, section), field)


def write_yaml(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal_of(flags: list[str], *, config_file: Path | None = None) -> str:
    """The message of a refusal, empty when the config loads; anything else is raised."""
    try:
        load_config(flags, config_file=config_file)
    except ConfigError as refused:
        return str(refused)
    return ""


class TestOrderOfSources:
    def test_every_setting_has_a_sample(self) -> None:
        assert set(SAMPLES) == set(field_names()), "add the setting to SAMPLES"

    @pytest.mark.parametrize("name", SAMPLES)
    def test_flag_beats_environment_beats_file_beats_default(
        self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        in_file, in_environment, as_flag = SAMPLES[name]
        company = COMPANY.get(name, ())
        section, field = name.split(".")
        path = write_yaml(tmp_path, f"{section}:\n  {field}: {in_file}\n")

        default = load_config([])
        from_file = load_config(company, config_file=path)
        monkeypatch.setenv(variable_of(name), in_environment)
        from_environment = load_config(company, config_file=path)
        from_flag = load_config([*company, f"--{name}={as_flag}"], config_file=path)
        monkeypatch.delenv(variable_of(name))

        layers = (from_file, from_environment, from_flag)
        assert [layer.origins[name] for layer in layers] == [str(path), variable_of(name), f"--{name}"]
        assert name not in default.origins
        expected = [load_config([*company, f"--{name}={text}"]) for text in SAMPLES[name]]
        assert [value_of(layer, name) for layer in layers] == [value_of(layer, name) for layer in expected]
        assert value_of(from_file, name) != value_of(from_environment, name) != value_of(from_flag, name)

    def test_sources_are_merged_field_by_field(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write_yaml(tmp_path, "train: {epochs: 5, optimizer: adam}\nmodel: {dropout: 0.5}\n")
        monkeypatch.setenv("MNIST_TRAIN__LEARNING_RATE", "0.25")
        loaded = load_config(["--train.global_batch_size", "64"], config_file=path).config
        train = loaded.train
        assert (train.epochs, train.optimizer, train.learning_rate, train.global_batch_size) == (5, "adam", 0.25, 64)
        assert train.precision == "float32"
        assert loaded.model.dropout == 0.5

    def test_defaults_are_the_reference_model(self) -> None:
        default_newer = {
            "weight_decay": None,
            "clip_norm": None,
            "schedule": "constant",
            "warmup_steps": 0,
            "step_epochs": None,
            "step_factor": 0.1,
            "label_smoothing": 0.0,
            "class_weights": "none",
            "metrics": (),
            "evaluate_every": 1,
            "monitor": "val_loss",
            "early_stopping_patience": None,
            "early_stopping_min_delta": 0.0,
            "keep": "last",
        }
        config = load_config([]).config
        assert config.model.model_dump() == {
            "build": None,
            "hidden_units": (512, 512),
            "activation": "sigmoid",
            "dropout": 0.0,
            "args": {},
        }
        assert config.train.model_dump() == {
            **default_newer,
            "epochs": 20,
            "global_batch_size": 128,
            "optimizer": "sgd",
            "learning_rate": 0.01,
            "precision": "float32",
            "compile": "auto",
        }
        assert (config.run.seed, config.data.source, config.data.dataset) == (1337, "tfds", "mnist")

    def test_last_of_two_equal_flags_wins(self) -> None:
        assert load_config(["--train.epochs=1", "--train.epochs=3"]).config.train.epochs == 3

    @pytest.mark.parametrize("text", ["64,32", "[64,32]", "[64, 32]", " 64 , 32 "])
    def test_lists_are_read_in_every_form(self, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
        assert load_config([f"--model.hidden_units={text}"]).config.model.hidden_units == (64, 32)
        monkeypatch.setenv("MNIST_MODEL__HIDDEN_UNITS", text)
        assert load_config([]).config.model.hidden_units == (64, 32)

    def test_config_cannot_be_changed_afterwards(self) -> None:
        config = load_config([]).config
        with pytest.raises(ValueError, match="frozen"):
            config.train.epochs = 3  # type: ignore[misc]


DNS_1123 = "must be a DNS-1123 subdomain"
REFUSED_FLAGS = [
    ("--train.epoch=3", r"--train\.epoch: unknown flag; did you mean --train\.epochs\?"),
    ("--train.global-batch-size=3", r"unknown flag; did you mean --train\.global_batch_size\?"),
    ("--zzz.qqq=3", r"--zzz\.qqq: unknown flag; see mnist-job run --help"),
    ("--train=3", r"--train: unknown flag"),
    ("--train.lr=3", r"--train\.lr: unknown flag; did you mean --train\.learning_rate\?"),
    ("--train.batch-size=3", r"--train\.batch-size: unknown flag; did you mean --train\.global_batch_size\?"),
    ("--model.epochs=3", r"--model\.epochs: unknown flag; did you mean --train\.epochs\?"),
    ("--data.seed=3", r"did you mean --run\.seed\?"),
    ("--train.epochs=3\n4", r"train\.epochs: must be one line .*received '3\\n4' \[--train\.epochs\]"),
    ("--store.uri=file:./a\n", r"store\.uri: must be one line .*received 'file:\./a\\n'"),
    ("--data.uri=a\tb", r"data\.uri: must be one line without control characters"),
    ("--data.uri=", r"data\.uri: must have a value; leave it out for the default"),
    ("--model.hidden_units=", r"model\.hidden_units: must have a value; .* \[\] for an empty list"),
    ("--model.hidden_units= ", r"model\.hidden_units: must have a value"),
    ("--model.hidden_units=,", r"model\.hidden_units: must be a valid integer, .*received ''"),
    ("--model.hidden_units=64,,32", r"model\.hidden_units: must be a valid integer, .*received ''"),
    ("--model.hidden_units=[64", r"model\.hidden_units: must be a list such as 512,256"),
    ("--model.args={a: 017}", r"model\.args: must be a mapping .*017 is read in more than one way"),
    ("--model.args={a: 1, a: 2}", r"model\.args: .*the key 'a' is there twice"),
    ("--model.build=os.path:__getattr__", r"model\.build: must be package\.module:function"),
    ("--data.source=mine:__import__", r"data\.source: must be tfds, idx, digits or package\.module:function"),
    ("--model.build=mine:a.b", r"model\.build: must be package\.module:function"),
    ("--model.args={a: b\nc}", r"model\.args: .*a text goes on in the next line"),
    ("--model.args={a: 'b\n  c'}", r"model\.args: .*a text goes on in the next line"),
    (f"--model.args={{a: {'[' * 40}{']' * 40}}}", r"model\.args: .*lists and mappings must be at most 32 deep"),
    (f"--model.args={{a: {'[' * 9000}", r"model\.args: must be a mapping"),
    (f"--model.args={{a: {'1' * 5000}}}", r"model\.args: .*a number must have at most 100 characters"),
    (f"--model.args={{a: 0x{'f' * 6000}}}", r"model\.args: .*a number must have at most 100 characters"),
    (f"--train.epochs={'1' * 5000}", r"train\.epochs: Unable to parse input string as an integer"),
    ("--cluster.intra_op_threads=4097", r"cluster\.intra_op_threads: must be less than or equal to 4096"),
    (f"--cluster.inter_op_threads={10**20}", r"cluster\.inter_op_threads: must be less than or equal to 4096"),
    ("--train.clip_norm=1e300", r"train\.clip_norm: must be less than or equal to 1000000000"),
    ("--train.epochs=1e400", r"train\.epochs: must be a valid integer"),
    ("--train.learning_rate=1e400", r"train\.learning_rate: must be a finite number"),
    ("stray", r"stray: must be --section\.field=VALUE"),
    ("--train.epochs", r"--train\.epochs: must have a value"),
    ("--train.epochs=three", r"train\.epochs: must be a valid integer.*received 'three' \[--train\.epochs\]"),
    ("--train.epochs=1.5", r"train\.epochs: must be a valid integer.*received '1\.5'"),
    ("--train.epochs=", r"train\.epochs: must have a value; .*received '' \[--train\.epochs\]"),
    ("--train.epochs=0", r"train\.epochs: must be greater than or equal to 1, received '0' \[--train\.epochs\]"),
    ("--train.epochs=-1", r"train\.epochs: must be greater than or equal to 1, received '-1'"),
    (f"--train.epochs={10**12}", rf"train\.epochs: must be less than or equal to 100000, received '{10**12}'"),
    ("--train.learning_rate=nan", r"train\.learning_rate: must be a finite number, received 'nan'"),
    ("--train.learning_rate=inf", r"train\.learning_rate: must be a finite number, received 'inf'"),
    ("--train.learning_rate=0", r"train\.learning_rate: must be greater than 0, received '0'"),
    ("--train.optimizer=lamb", r"train\.optimizer: must be 'sgd', 'momentum'.* 'adamw' or 'lion', received 'lamb'"),
    ("--train.global_batch_size=0", r"train\.global_batch_size: must be greater than or equal to 1"),
    ("--model.hidden_units=64,wide", r"model\.hidden_units: must be a valid integer.*received 'wide'"),
    ("--model.hidden_units=64,0", r"model\.hidden_units: must be greater than or equal to 1, received '0'"),
    ("--model.dropout=1", r"model\.dropout: must be less than 1, received '1'"),
    ("--model.dropout=nan", r"model\.dropout: must be a finite number"),
    ("--model.build=package.module", r"model\.build: must be package\.module:function, received 'package\.module'"),
    ("--checkpoint.keep=0", r"checkpoint\.keep: must be greater than or equal to 1, received '0'"),
    ("--checkpoint.interval_seconds=0", r"checkpoint\.interval_seconds: must be greater than 0, received '0'"),
    ("--run.id=Über", rf"run\.id: {DNS_1123}.*received 'Über' \[--run\.id\]"),
    ("--run.id=größe", rf"run\.id: {DNS_1123}.*received 'größe'"),
    ("--run.id=../x", rf"run\.id: {DNS_1123}.*received '\.\./x'"),
    ("--run.id=a/b", rf"run\.id: {DNS_1123}"),
    ("--run.id=a..b", rf"run\.id: {DNS_1123}"),
    ("--run.id=-a", rf"run\.id: {DNS_1123}"),
    ("--run.id=a-", rf"run\.id: {DNS_1123}"),
    ("--run.id=ABC", rf"run\.id: {DNS_1123}.*received 'ABC'"),
    ("--run.id=", r"run\.id: must have a value; .*received ''"),
    ("--run.id=" + "a" * 254, rf"run\.id: {DNS_1123}.*at most 253 characters, received 'aaa"),
    ("--run.seed=-1", r"run\.seed: must be greater than or equal to 0, received '-1'"),
    ("--run.seed=4294967296", r"run\.seed: must be less than 4294967296"),
    ("--run.seed=dice", r"run\.seed: .*received 'dice'"),
    ("--run.suffix=a/b", r"run\.suffix: .*received 'a/b'"),
    ("--cluster.workers=65", r"cluster\.workers: must be less than or equal to 64"),
    ("--cluster.peer_timeout_seconds=9", r"cluster\.peer_timeout_seconds: must be greater than or equal to 10"),
    ("--cluster.workers=0", r"cluster\.workers: must be greater than or equal to 1"),
    ("--cluster.expected_gpus=-1", r"cluster\.expected_gpus: must be greater than or equal to 0"),
    ("--data.source=idx", r"data: uri must be set with source=idx: a folder or store URI"),
    ("--data.source=mnist", r"data\.source: must be tfds, idx, digits or package\.module:function, received 'mnist'"),
    ("--data.dataset=../../etc", r"data\.dataset: must be letters and digits.*received '\.\./\.\./etc'"),
    ("--data.dataset=cifar10", r"data: dataset must be one of mnist, fashion_mnist, kmnist, emnist/digits"),
    ("--data.train_examples=0", r"data\.train_examples: must be greater than or equal to 1"),
    ("--store.uri=./out", r"store\.uri: must start with file:, s3://, gs:// or az:// .*received '\./out'"),
    ("--store.uri=s3://", r"store\.uri: must be s3://BUCKET or s3://BUCKET/PREFIX.*, received 's3://'"),
    ("--store.endpoint=minio:9000", r"store\.endpoint: must be a URL .*received 'minio:9000'"),
    ("--store.deadline_seconds=-1", r"store\.deadline_seconds: must be greater than 0"),
    ("--promotion.min_accuracy=1.5", r"promotion\.min_accuracy: must be less than or equal to 1"),
    ("--promotion.model_name=../x", r"promotion\.model_name: .*received '\.\./x'"),
    ("--promotion.metric=top-3", r"promotion\.metric: .*received 'top-3'"),
    (
        "--observe.metrics_address=localhost",
        r"observe\.metrics_address: must be an IPv4 or IPv6 address as numbers, such as",
    ),
    (
        "--observe.metrics_address=::ffff:127.0.0.1",
        r"observe\.metrics_address: must not be an IPv4 address in the form of IPv6; write 127\.0\.0\.1, received",
    ),
    ("--observe.metrics_port=65536", r"observe\.metrics_port: must be less than or equal to 65535"),
    ("--run.skip_if_unchanged=maybe", r"run\.skip_if_unchanged: must be a valid boolean.*received 'maybe'"),
]


class TestRefusals:
    @pytest.mark.parametrize(("flag", "message"), REFUSED_FLAGS, ids=[flag[:40] for flag, _ in REFUSED_FLAGS])
    def test_flag_is_refused_by_name_rule_and_value(self, flag: str, message: str) -> None:
        with pytest.raises(ConfigError, match=message) as refused:
            load_config([flag])
        assert "\n" not in str(refused.value)

    def test_uri_without_a_source_that_reads_it_is_refused(self) -> None:
        with pytest.raises(ConfigError, match=r"data: uri is read only with source idx or tfds, received digits"):
            load_config(["--data.source=digits", "--data.uri=somewhere"])

    def test_every_bad_setting_is_named_at_once(self) -> None:
        with pytest.raises(ConfigError) as refused:
            load_config(["--train.epochs=0", "--checkpoint.keep=0"])
        assert [line.partition(":")[0] for line in str(refused.value).splitlines()] == [
            "train.epochs",
            "checkpoint.keep",
        ]

    @pytest.mark.parametrize("name", ["store.uri", "data.cache_dir"])
    def test_text_that_is_not_utf8_is_refused(self, name: str) -> None:
        """It could neither be logged nor recorded in run.json."""
        with pytest.raises(ConfigError, match=name):
            load_config([f"--{name}=file:./\udcff"])

    def test_long_dataset_name_is_refused_at_once(self) -> None:
        """A pattern that backtracks would take longer than the sun lasts."""
        with pytest.raises(ConfigError, match=r"data\.dataset: must be letters and digits"):
            load_config(["--data.source=digits", f"--data.dataset={'a' * 60}!"])

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("tran: {epochs: 3}", r"tran: unknown section in .*config\.yaml; did you mean train\?; known: run, data"),
            ("train: {epoch: 3}", r"train\.epoch: unknown setting; did you mean train\.epochs\? \[.*config\.yaml\]"),
            ("train: {epochs: three}", r"train\.epochs: must be a valid integer.*'three' \[.*config\.yaml\]"),
            ("train: {epochs: [3]}", r"train\.epochs: must be a valid integer, received \['3'\]"),
            ("train: {epochs: true}", r"train\.epochs: must be a valid integer, .*received 'true'"),
            ("train: {learning_rate: .nan}", r"train\.learning_rate: must be a valid number, .*received '\.nan'"),
            ("train: {learning_rate: nan}", r"train\.learning_rate: must be a finite number, received 'nan'"),
            ("train: 3", r"train: must hold 'field: value' lines in .*config\.yaml, received 3"),
            ("train: [epochs]", r"train: must hold 'field: value' lines .*received \['epochs'\]"),
            ("train: {1: 2}", r"a key must be the name of a section or of a setting, received '1'"),
            ("1: 2", r"--config: .*config\.yaml cannot be used: a key must be the name of a section"),
            ("- train", r"--config: .*config\.yaml must hold sections .*received list"),
            ("just text", r"--config: .*config\.yaml must hold sections .*received str"),
            (
                "train: {epochs: 3}\ntrain: {epochs: 4}",
                r"--config: .*config\.yaml cannot be used: the key 'train' is there twice",
            ),
            ("train: {epochs: 3, epochs: 4}", r"the key 'epochs' is there twice"),
            ("train: {epochs: 3, 'epochs': 4}", r"the key 'epochs' is there twice at line 1"),
            ("data: {source: a:b, args: {a: {b: 1, b: 2}}}", r"the key 'b' is there twice"),
            ("train: {<<: {epochs: 3}, <<: {epochs: 4}}", r"the key '<<' is there twice"),
            ("train: {epochs: 017}", r"017 is an octal number in YAML, and a decimal one elsewhere"),
            ("model: {hidden_units: [-017]}", r"-017 is an octal number"),
            ("run: {suffix: 007}", r"007 is an octal number .*, or quote the text"),
            ("data: {cache_dir: ~}", r"~ is null in YAML, and the home folder in a path; write null or '~'"),
            ("data: {cache_dir: ''}", r"data\.cache_dir: must have a value"),
            ("data: {source: a:b, args: {a: 1:30}}", r"1:30 is read in more than one way"),
            ("data: {source: a:b, args: {a: [yes]}}", r"yes is read in more than one way"),
            ("data: {source: a:b, args: {a: 1e3}}", r"1e3 is read in more than one way"),
            ("data: {source: a:b, args: {a: 2024-01-01}}", r"data\.args: must map names to JSON values"),
            ("data: &a [*a]", r"a value contains itself"),
            ("train: {epochs: 3}\n---\ntrain: {epochs: 4}", r"expected a single document"),
            ("train:\n\tepochs: 3", r"cannot be used: .*'\\t' that cannot start any token at line 2"),
            ("train: {epochs: !x 3}", r"could not determine a constructor for the tag '!x'"),
            ("train: {epochs: 3", r"--config: .*config\.yaml cannot be used: "),
            ("train: !!python/object/apply:os.getcwd []", r"--config: .*config\.yaml cannot be used: .*constructor"),
        ],
    )
    def test_bad_file_is_refused(self, text: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=message) as refused:
            load_config([], config_file=write_yaml(tmp_path, text))
        assert "\n" not in str(refused.value)

    def test_file_of_aliases_of_aliases_is_refused_at_once(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        lines += [f"a{number}: &a{number} [{', '.join([f'*a{number - 1}'] * 10)}]" for number in range(1, 10)]
        with pytest.raises(ConfigError, match="it holds more than 10,000 values"):
            load_config([], config_file=write_yaml(tmp_path, "\n".join(lines)))

    @pytest.mark.security("S5")
    @pytest.mark.parametrize("place", ["/dev/zero", "a file"])
    def test_file_without_end_is_refused(self, place: str, tmp_path: Path) -> None:
        path = Path(place) if place == "/dev/zero" else write_yaml(tmp_path, "#" * 1_000_001)
        with pytest.raises(
            ConfigError, match=r"--config: .* must hold at most 1,000,000 characters, received more; name a file"
        ):
            load_config([], config_file=path)

    def test_file_of_a_million_values_is_not_read_to_its_end(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"it holds more than 10,000 values, .* at line 1, column "):
            load_config([], config_file=write_yaml(tmp_path, f"a: [{'x,' * 490_000}]"))

    def test_pipe_is_read(self, tmp_path: Path) -> None:
        reader, writer = os.pipe()
        os.write(writer, b"train: {epochs: 3}")
        os.close(writer)
        try:
            assert load_config([], config_file=Path(f"/dev/fd/{reader}")).config.train.epochs == 3
        finally:
            os.close(reader)

    def test_missing_file_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"--config: .*absent\.yaml cannot be read: .*No such file"):
            load_config([], config_file=tmp_path / "absent.yaml")

    def test_file_that_is_not_text_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "config.yaml"
        path.write_bytes(b"\xff\xfe\x00")
        with pytest.raises(ConfigError, match=r"--config: .*config\.yaml cannot be read"):
            load_config([], config_file=path)

    def test_empty_file_changes_nothing(self, tmp_path: Path) -> None:
        loaded = load_config([], config_file=write_yaml(tmp_path, "# nothing yet\n"))
        assert (loaded.config, loaded.origins) == (load_config([]).config, {})


ALIKE = [
    *[
        ("train.epochs", text)
        for text in ("3", "1_000", "1e3", "0x10", "1:30", "3.0", "yes", "true", "null", "+3", ".inf")
    ],
    *[
        ("train.learning_rate", text)
        for text in ("1e-3", "1e3", ".5", "1.", ".inf", ".nan", "nan", "1_0.5", "1:30", "true")
    ],
    *[("observe.report", text) for text in ("yes", "no", "on", "off", "True", "FALSE", "1", "0", "y", "null", "2")],
    *[("run.suffix", text) for text in ("no", "1.10", "2024-01-01", "0x10", "1e3", "true", "NaN")],
    *[("run.id", text) for text in ("2024-01-01", "1.10", "12", "yes")],
    *[("data.uri", text) for text in ("null", "no", "1.0")],
    *[("model.hidden_units", text) for text in ("[8, 16]", "64", "[]", "[1_0]", "[0x8]")],
]


class TestOneRule:
    """A value means the same in a flag, in a variable and in a file, also where YAML reads it in another way."""

    @pytest.mark.parametrize(("name", "text"), ALIKE)
    def test_text_means_the_same_everywhere(
        self, name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        section, field = name.split(".")
        path = write_yaml(tmp_path, f"{section}:\n  {field}: {text}\n")
        company = ["--data.source=idx"] if name == "data.uri" else []

        def outcome(flags: list[str], config_file: Path | None = None) -> object:
            try:
                return value_of(load_config([*company, *flags], config_file=config_file), name)
            except ConfigError as refused:
                return str(refused).partition(" [")[0]

        from_flag, from_file = outcome([f"--{name}={text}"]), outcome([], path)
        monkeypatch.setenv(variable_of(name), text)
        assert [repr(from_file), repr(outcome([]))] == [repr(from_flag)] * 2

    def test_nothing_is_null_in_a_file_and_no_value_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert load_config([], config_file=write_yaml(tmp_path, "data: {cache_dir: }\n")).config.data.cache_dir is None
        monkeypatch.setenv("MNIST_DATA__CACHE_DIR", "")
        with pytest.raises(ConfigError, match=r"data\.cache_dir: must have a value; .*\[MNIST_DATA__CACHE_DIR\]"):
            load_config([])

    def test_empty_text_is_a_value_where_it_is_the_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MNIST_RUN__SUFFIX", "")
        assert load_config([]).config.run.suffix == load_config(["--run.suffix="]).config.run.suffix == ""

    def test_key_of_a_section_goes_before_what_is_merged_into_it(self, tmp_path: Path) -> None:
        path = write_yaml(tmp_path, "train: {<<: {epochs: 3, optimizer: adam}, epochs: 4}\n")
        train = load_config([], config_file=path).config.train
        assert (train.epochs, train.optimizer) == (4, "adam")

    def test_byte_order_mark_is_no_part_of_a_name(self, tmp_path: Path) -> None:
        assert load_config([], config_file=write_yaml(tmp_path, "\ufefftrain: {epochs: 3}\n")).config.train.epochs == 3

    @pytest.mark.parametrize("text", ["1e3", "1e-3", "no", "017", "1:30", "2024-01-01", "null", "~", "x"])
    def test_text_in_args_survives_being_shown(self, text: str, tmp_path: Path) -> None:
        config = load_config(["--data.source=a:b", f"--data.args={{a: '{text}'}}"]).config
        assert config.data.args == {"a": text}
        shown = write_yaml(tmp_path, f"data: {{source: a:b, args: {to_text(config.data.args)}}}\n")
        assert load_config([], config_file=shown).config == config


class TestEnvironment:
    @pytest.mark.parametrize("name", ["MNIST_TEST_DATA", "MNIST_DIR"])
    def test_variables_of_the_scripts_are_no_settings(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "/data")
        assert load_config([]).origins == {}

    def test_two_spellings_of_one_variable_are_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MNIST_TRAIN__EPOCHS", "3")
        monkeypatch.setenv("mnist_train__epochs", "4")
        with pytest.raises(ConfigError, match=r"train\.epochs: \w+ and \w+ are the same setting; keep one of the two"):
            load_config([])

    @pytest.mark.parametrize("variable", ["MNIST_TRAIN__EPOCHS", "mnist_train__epochs"])
    def test_a_pod_of_the_chart_takes_no_settings_from_variables(
        self, variable: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A key of a Secret changed the result, and the id that the chart had made of its values stayed."""
        monkeypatch.setenv(variable, "3")
        assert load_config([]).config.train.epochs == 3
        monkeypatch.setenv("CHART_VERSION", "0.1.0")
        with pytest.raises(
            ConfigError, match=rf"^{variable}: must not be set in a pod of the chart, .* set train\.epochs in"
        ):
            load_config(["--train.epochs=3"])
        monkeypatch.delenv(variable)
        monkeypatch.setenv("MNIST_SERVING_PORT", "tcp://10.0.0.1:80")
        assert load_config(["--train.epochs=3"]).config.train.epochs == 3

    def test_one_variable_may_be_in_lower_case(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("mnist_train__epochs", "4")
        assert load_config([]).config.train.epochs == 4

    @pytest.mark.parametrize(
        "name",
        [
            "MNIST_SERVICE_HOST",
            "MNIST_SERVICE_PORT",
            "MNIST_SERVICE_PORT_HTTP",
            "MNIST_PORT",
            "MNIST_PORT_80_TCP",
            "MNIST_PORT_80_TCP_ADDR",
            "MNIST_PORT_443_UDP_PROTO",
            "MNIST_TRAIN_PORT_9090_SCTP_PORT",
            "MNIST_TRAIN_SERVICE_HOST",
            "MNIST_TRAIN_METRICS_SERVICE_PORT_HTTP_METRICS",
        ],
    )
    def test_variables_of_a_kubernetes_service_are_ignored(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "tcp://10.0.0.1:80")
        loaded = load_config([])
        assert (loaded.config, loaded.origins) == (Config(), {})

    @pytest.mark.parametrize(
        ("name", "hint"),
        [
            ("MNIST_TRAIN__EPOCH", "; did you mean MNIST_TRAIN__EPOCHS?"),
            ("MNIST_TRAIN_EPOCHS", "; did you mean MNIST_TRAIN__EPOCHS?"),
            ("MNIST_OBSERVE__METRIC_PORT", "; did you mean MNIST_OBSERVE__METRICS_PORT?"),
            ("MNIST_TRAIN__EPOCHS__X", "; did you mean MNIST_TRAIN__EPOCHS?"),
            ("MNIST_TRAIN__LR", "; did you mean MNIST_TRAIN__LEARNING_RATE?"),
            ("MNIST_LR", "; did you mean MNIST_TRAIN__LEARNING_RATE?"),
            ("MNIST_SEED", "; did you mean MNIST_RUN__SEED?"),
            ("MNIST_TRAIN", ""),
            ("MNIST_FOO", ""),
            ("mnist_foo__bar", ""),
            ("MNIST_PORTS", ""),
        ],
    )
    def test_unknown_variable_is_refused(self, name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(name, "3")
        with pytest.raises(ConfigError, match=f"^{name}: unknown variable{re.escape(hint)}"):
            load_config([])

    def test_setting_that_looks_like_a_service_variable_works(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MNIST_OBSERVE__METRICS_PORT", "1234")
        assert load_config([]).config.observe.metrics_port == 1234

    def test_bad_value_names_its_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MNIST_TRAIN__EPOCHS", "0")
        with pytest.raises(ConfigError, match=r"train\.epochs: .*received '0' \[MNIST_TRAIN__EPOCHS\]"):
            load_config([])


WITHOUT_SURROGATES = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
KEYS = st.text(st.characters(categories=["L", "N", "P"]), max_size=5)


class TestAnything:
    @given(name=st.sampled_from(sorted(SAMPLES)), value=WITHOUT_SURROGATES)
    @settings(max_examples=150)
    @example(name="data.dataset", value="a" * 40 + "!")
    @example(name="model.hidden_units", value='["')
    @example(name="data.uri", value='"')
    def test_any_value_of_any_flag_loads_or_is_refused_by_name(self, name: str, value: str) -> None:
        refusal = refusal_of([f"--{name}={value}"])
        assert not refusal or name in refusal or refusal.startswith(f"{name.partition('.')[0]}: ")

    @given(
        content=st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.dates() | WITHOUT_SURROGATES,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
            max_leaves=5,
        ),
        name=st.sampled_from([*SAMPLES, "train", "unknown", ""]),
    )
    @settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_yaml_loads_or_is_refused(self, content: object, name: str, tmp_path: Path) -> None:
        section, _, field = name.partition(".")
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({section: {field: content} if field else content} if section else content))
        num_settings = len(content) if isinstance(content, dict) else 1
        assert len(refusal_of([], config_file=path).splitlines()) <= max(1, num_settings)
