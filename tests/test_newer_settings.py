"""A newer setting with a default that changes nothing changes no id and no digest of those who do not set it."""

import shutil
from pathlib import Path

import pytest
from generators import chart as chart_files
from pydantic import Field

from job.config import Config, DataSection, TrainSection
from job.runs.identity import deciding_fields, digest_of_inputs, make_run_id, result_inputs
from tests.charts import helm
from tests.charts.helm import render, run_id


class _NewTrain(TrainSection):
    lookahead_steps: int = Field(0, ge=0, description="steps with a growing learning rate")


class _NewData(DataSection):
    augment: str | None = Field(None, description="how examples are changed")


class _NewConfig(Config):
    train: _NewTrain = _NewTrain()
    data: _NewData = _NewData()


def _digest(config: Config) -> str:
    return digest_of_inputs(result_inputs(config, seed=1, compile_with="xla", num_replicas=1, dataset_digest="d"))


@pytest.mark.parametrize("given", [{}, {"train": {"epochs": 3}}, {"data": {"source": "digits"}}])
def test_newer_setting_at_its_default_is_part_of_nothing(given: dict[str, dict[str, object]]) -> None:
    old, new = Config.model_validate(given), _NewConfig.model_validate(given)
    assert (make_run_id(new), _digest(new)) == (make_run_id(old), _digest(old))


@pytest.mark.parametrize("given", [{"train": {"lookahead_steps": 10}}, {"data": {"augment": "mirror"}}])
def test_newer_setting_that_is_set_makes_another_run(given: dict[str, dict[str, object]]) -> None:
    old, new = _NewConfig(), _NewConfig.model_validate(given)
    assert make_run_id(new) != make_run_id(old)
    assert _digest(new) != _digest(old)


def test_newer_setting_of_what_decides_decides() -> None:
    assert set(deciding_fields(_NewConfig)) - set(deciding_fields()) == {"train.lookahead_steps", "data.augment"}


@pytest.fixture
def newer_chart(tmp_path: Path) -> Path:
    """The chart as `scripts/generate` would make it of the newer schema."""
    copy = tmp_path / "charts" / "mnist-train"
    shutil.copytree(helm.CHART, copy)
    for name, content in chart_files.make_files(tmp_path, _NewConfig).items():
        (tmp_path / name).write_text(content)
    return copy


@pytest.mark.parametrize("given", [{}, {"train": {"epochs": 3}}, {"data": {"source": "digits"}}])
def test_in_the_chart_it_is_part_of_nothing(given: dict[str, dict[str, object]], newer_chart: Path) -> None:
    def newer_id(**train: int) -> str:
        values = {"image": helm.IMAGE, **given, "train": {**given.get("train", {}), **train}}
        return run_id(render(values, chart=newer_chart))

    old = run_id(render(given))
    assert newer_id() == old
    assert newer_id(lookahead_steps=0) == old
    assert newer_id(lookahead_steps=10) != old
