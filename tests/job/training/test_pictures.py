"""Pictures of the mistakes, of every shape and type of example that the job takes."""

from typing import Any

import numpy as np
import pytest

from job.runs.read import MISTAKE_PICTURES, MISTAKE_POSITIONS
from job.training.pictures import picture_mistakes


def _wrong(*positions: int) -> list[dict[str, Any]]:
    return [{"position": position, "label": 0, "predicted": 1, "probability": 0.9} for position in positions]


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((28, 28), np.uint8, (28, 28)),
        ((28, 28, 1), np.uint8, (28, 28)),
        ((28, 28, 2), np.uint8, (28, 28)),
        ((32, 32, 3), np.uint8, (32, 32, 3)),
        ((32, 32, 4), np.float32, (32, 32, 3)),
        ((224, 112, 3), np.uint8, (56, 28, 3)),
        ((57, 56), np.float32, (56, 55)),
        ((1, 5000), np.uint8, (1, 56)),
        ((1, 1), np.uint8, (1, 1)),
    ],
)
def test_every_image_becomes_a_small_picture(shape: tuple[int, ...], dtype: Any, expected: tuple[int, ...]) -> None:
    images = np.full((30, *shape), 0.5 if dtype is np.float32 else 100, dtype)
    arrays = picture_mistakes(images, _wrong(*range(29, -1, -1)))
    assert arrays[MISTAKE_POSITIONS].tolist() == [*range(29, 9, -1)]
    assert arrays[MISTAKE_PICTURES].shape == (20, *expected)
    assert set(np.unique(arrays[MISTAKE_PICTURES])) == {100 if dtype is np.uint8 else 128}


@pytest.mark.parametrize("shape", [(13,), (8, 8, 5), (2, 2, 2, 2)])
def test_what_is_no_picture_has_none(shape: tuple[int, ...]) -> None:
    assert picture_mistakes(np.zeros((3, *shape), np.float32), _wrong(0, 1)) == {}


def test_without_mistakes_there_are_no_pictures() -> None:
    assert picture_mistakes(np.zeros((3, 2, 2), np.uint8), []) == {}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0, 0.25], [0, 128, 255, 64]),
        ([-1.0, 0.0, 1.0, 3.0], [0, 64, 128, 255]),
        ([0.0, 255.0, 51.0, 102.0], [0, 255, 51, 102]),
        ([-3e38, 3e38, 0.0, 0.0], [0, 255, 128, 128]),
        ([7.0, 7.0, 7.0, 7.0], [0, 0, 0, 0]),
        ([np.nan, 1.0, 0.0, 0.0], [0, 255, 0, 0]),
    ],
)
def test_floats_are_shades_whatever_their_range(values: list[float], expected: list[int]) -> None:
    images = np.array(values, np.float32).reshape(1, 2, 2)
    assert picture_mistakes(images, _wrong(0))[MISTAKE_PICTURES].ravel().tolist() == expected


def test_a_large_picture_keeps_what_is_where() -> None:
    images = np.zeros((1, 112, 112), np.uint8)
    images[0, :56, 56:] = 200  # upper right
    picture = picture_mistakes(images, _wrong(0))[MISTAKE_PICTURES][0]
    assert picture[:28, 28:].min() == 200 and picture[28:].max() == 0 and picture[:, :28].max() == 0
