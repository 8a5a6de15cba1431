"""The model that docs/own-model.md shows, trained with the settings that the chart's own example has."""

import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import REPOSITORY, RunJob

pytestmark = pytest.mark.tf

DATA = """
import numpy as np
from job.datasets import Dataset

def load():
    random = np.random.default_rng(0)
    labels = np.arange(220) % 2
    images = random.integers(0, 50, (220, 12, 12), np.uint8)
    images[labels == 1, ::2] += 200
    return Dataset(train_images=images[:200], train_labels=labels[:200], test_images=images[200:], test_labels=labels[200:],
                   class_names=("cat", "dog"))
"""


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """A folder with `mymodels.py` as documented, and a `mydata.py`."""
    text = (REPOSITORY / "docs" / "own-model.md").read_text()
    [model] = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "def small_cnn" in block]
    (tmp_path / "mymodels.py").write_text(model)
    (tmp_path / "mydata.py").write_text(DATA)
    return tmp_path


def test_charts_example_of_an_own_model_trains_in_bfloat16(run_job: RunJob, modules: Path) -> None:
    values = yaml.safe_load((REPOSITORY / "charts" / "mnist-train" / "ci" / "own-model-values.yaml").read_text())
    assert values["train"]["precision"] == "bfloat16"
    settings = modules / "settings.yaml"
    settings.write_text(yaml.safe_dump({name: values[name] for name in ("model", "data", "train", "run")}))
    flags = ("--observe.metrics_port=0", "--run.id=example", "--train.global_batch_size=32")
    done = run_job("run", f"--config={settings}", *flags, env={"PYTHONPATH": str(modules)})

    assert done.code == 0, done.stderr
    assert done.event("model.built")["precision"] == "bfloat16"
    verified = run_job("verify", "--run=example")
    assert verified.code == 0, verified.stderr


def test_documented_model_learns_in_bfloat16(run_job: RunJob, modules: Path) -> None:
    flags = ("--observe.metrics_port=0", "--model.build=mymodels:small_cnn", "--data.source=mydata:load")
    recipe = ("--train.optimizer=adam", "--train.learning_rate=0.01", "--train.epochs=15", "--train.precision=bfloat16")
    done = run_job("run", *flags, *recipe, "--train.global_batch_size=25", env={"PYTHONPATH": str(modules)})

    assert done.code == 0, done.stderr
    assert done.event("evaluate.end")["test_accuracy"] == 1.0
