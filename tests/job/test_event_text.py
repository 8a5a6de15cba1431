"""Events as a person reads them."""

import math

import pytest

from job.event_text import to_text

_EPOCH = {"step": 45, "epoch": 1, "loss": 0.123456, "accuracy": 0.75, "seconds": 0.5, "examples_per_second": 2874.6}
_END = {
    "outcome": "committed",
    "code": 0,
    "step": 90,
    "accuracy": 0.9583,
    "commit": "runs/r/COMMIT.json",
    "seconds": 12.345,
    "phases": {"start_up": 2.0, "compile": 6.0, "train": 4.0, "data": 0.3},
    "goodput": {"ratio": 0.325, "wall_seconds": 12.3},
    "peak_memory_bytes": 612_345_678,
}


def test_epochs_stand_in_columns_with_units() -> None:
    scores = {"test_loss": 0.2, "test_accuracy": 0.9, "learning_rate": 0.001}
    lines = [
        to_text("epoch.end", _EPOCH | scores),
        to_text(
            "epoch.end",
            _EPOCH
            | scores
            | {"epoch": 300, "loss": 123.4, "accuracy": 1.0, "seconds": 1234.5, "examples_per_second": 1.23e6},
        ),
    ]
    assert lines[0] == (
        "epoch    1  loss  0.1235  accuracy 0.7500  test loss  0.2000  accuracy 0.9000     0.50 s      2,875 images/s  rate 0.001"
    )
    assert [line.index("accuracy") for line in lines] == [line.index("accuracy") for line in lines[:1]] * 2
    assert len({line.index("images/s") for line in lines}) == 1
    assert "step" not in lines[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e-300])
def test_no_number_moves_a_column(value: float) -> None:
    line = to_text(
        "epoch.end", _EPOCH | {"loss": value, "val_loss": value, "val_accuracy": 0.5, "metrics": {"auc": value}}
    )
    assert line.index("accuracy") == to_text("epoch.end", _EPOCH).index("accuracy")
    assert "val loss" in line
    assert "auc" in line


def test_end_is_one_line_of_words() -> None:
    assert to_text("run.end", _END) == (
        "committed, exit code 0, after 12.3 s; step 90; accuracy 0.9583; compile 6.0 s, train 4.0 s, start up 2.0 s, "
        "others 0.3 s; goodput 32 %; peak memory 612 MB"
    )
    early = _END | {
        "outcome": "failed",
        "code": 66,
        "step": 0,
        "accuracy": None,
        "goodput": None,
        "phases": {"data": 1.0},
    }
    assert to_text("run.end", early) == "failed, exit code 66, after 12.3 s; data 1.0 s; peak memory 612 MB"


@pytest.mark.parametrize("event", ["epoch.end", "run.end"])
def test_event_of_another_version_is_told_plainly(event: str) -> None:
    assert to_text(event, {"epoch": 1}) == "epoch=1"
    assert to_text(event, {"epoch": None, "loss": "x"}) == "epoch=null loss=x"
    assert to_text(event, {"code": [1], "outcome": None}) == "code=[1] outcome=null"
    assert to_text("epoch.end", _EPOCH | {"new": 5}).endswith(" new=5")
    assert to_text("run.end", _END | {"new": "two words"}).endswith(' new="two words"')
