"""What decides a result, and the ids and seeds that follow from it."""

import os
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from job.config import Config
from job.config_sources import load_config
from job.contract import is_run_id
from job.errors import ConfigError
from job.runs.identity import make_run_id, resolve_seed, result_inputs


@pytest.fixture(autouse=True, scope="module")
def _no_settings_of_the_caller() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.upper().startswith("MNIST_")]:
            patch.delenv(name)
        yield


def config_of(*flags: str) -> Config:
    return load_config(flags).config


class TestRunId:
    def test_configured_id_is_taken_as_it_is(self) -> None:
        assert make_run_id(config_of("--run.id=my.run-1", "--run.suffix=x")) == "my.run-1"

    def test_equal_settings_give_equal_ids(self) -> None:
        assert make_run_id(config_of()) == make_run_id(config_of("--train.epochs=20"))
        assert make_run_id(config_of()).startswith("local.mnist-")

    @pytest.mark.parametrize(
        "flag",
        [
            "--run.suffix=again",
            "--run.seed=7",
            "--run.seed=random",
            "--data.source=digits",
            "--data.dataset=kmnist",
            "--data.train_examples=10",
            "--data.test_examples=10",
            "--model.hidden_units=64",
            "--model.dropout=0.5",
            "--train.epochs=3",
            "--train.learning_rate=0.5",
            "--train.precision=bfloat16",
            "--train.compile=graph",
        ],
    )
    def test_setting_that_decides_the_result_changes_the_id(self, flag: str) -> None:
        assert make_run_id(config_of(flag)) != make_run_id(config_of())

    @pytest.mark.parametrize(
        "flag",
        [
            "--data.cache_dir=elsewhere",
            "--data.max_bytes=1000000",
            "--store.uri=s3://bucket",
            "--observe.log_format=json",
            "--observe.metrics_port=0",
            "--observe.metrics_address=127.0.0.1",
            "--checkpoint.keep=7",
            "--promotion.min_accuracy=0.9",
            "--retention.keep_runs=3",
            "--run.skip_if_unchanged=true",
            "--cluster.intra_op_threads=3",
        ],
    )
    def test_setting_that_does_not_decide_it_changes_nothing(self, flag: str) -> None:
        assert make_run_id(config_of(flag)) == make_run_id(config_of())

    def test_random_seed_makes_every_start_a_new_run(self) -> None:
        assert len({make_run_id(config_of("--run.seed=random")) for _ in range(10)}) == 10

    @given(
        source=st.from_regex(r"\A[A-Za-z_]\w{0,70}(\.[A-Za-z_]\w{0,9}){0,3}:[A-Za-z_]\w{0,9}\Z"),
        dataset=st.from_regex(r"\A[A-Za-z0-9]{1,70}([-_./:][A-Za-z0-9]{1,9}){0,3}\Z"),
    )
    @settings(max_examples=50)
    @example(source="_:_", dataset="0")
    @example(source="Größe._x:é", dataset="K.K")
    def test_every_generated_id_may_name_a_run(self, source: str, dataset: str) -> None:
        for flag in (f"--data.source={source}", f"--data.dataset={dataset}"):
            try:
                config = config_of("--data.source=digits", flag)
            except ConfigError:
                continue
            assert is_run_id(make_run_id(config))


class TestSeed:
    def test_configured_seed_is_used(self) -> None:
        assert resolve_seed(config_of("--run.seed=7"), run_id="any") == 7
        assert resolve_seed(config_of(), run_id="any") == 1337

    @given(run_id=st.text(min_size=1, max_size=20))
    def test_random_seed_follows_from_the_run_id(self, run_id: str) -> None:
        config = Config.model_construct(run=RANDOM.run)
        seed = resolve_seed(config, run_id=run_id)
        assert seed == resolve_seed(config, run_id=run_id)
        assert 0 <= seed < 2**32
        assert seed != resolve_seed(config, run_id=run_id + "x")


RANDOM = Config.model_validate({"run": {"seed": "random"}})


class TestResultInputs:
    def test_they_are_all_that_decides_a_result_and_nothing_else(self) -> None:
        config = config_of("--data.train_examples=100", "--store.uri=s3://bucket", "--run.suffix=x", "--run.id=y")
        assert result_inputs(config, seed=3, compile_with="xla", num_replicas=1, dataset_digest="abc") == {
            "model": {"build": None, "hidden_units": [512, 512], "activation": "sigmoid", "dropout": 0.0},
            "train": {
                "epochs": 20,
                "global_batch_size": 128,
                "optimizer": "sgd",
                "learning_rate": 0.01,
                "precision": "float32",
                "compile": "xla",
            },
            "seed": 3,
            "workers": 1,
            "train_examples": 100,
            "test_examples": None,
            "dataset_digest": "abc",
        }

    def test_source_does_not_matter_where_the_data_are_the_same(self) -> None:
        one, other = (
            result_inputs(config, seed=1, compile_with="xla", num_replicas=1, dataset_digest="abc")
            for config in (config_of(), config_of("--data.source=idx", "--data.uri=folder"))
        )
        assert one == other
