"""Small pictures of the test examples that the report shows. Numpy alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.datasets.dataset import Images
from job.runs.read import MISTAKE_PICTURES, MISTAKE_POSITIONS, MOST_PICTURES, PICTURE_SIDE


def picture_mistakes(images: Images, wrong: Sequence[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """Arrays for the predictions file: positions and pictures of the first mistakes; nothing when there is nothing to see.

    Args:
        images: of the test split.
        wrong: the mistakes, the most confident first, as in `evaluation.Scores`.
    """
    positions = [int(one["position"]) for one in wrong[:MOST_PICTURES]]
    if not positions or not are_pictures(images.shape[1:]):
        return {}
    pictures = [to_picture(np.asarray(images[place : place + 1])[0]) for place in positions]  # one at a time in memory
    return {MISTAKE_POSITIONS: np.array(positions, np.int64), MISTAKE_PICTURES: np.stack(pictures)}


def are_pictures(shape: tuple[int, ...]) -> bool:
    """Whether an example of this shape can be looked at: [h, w], or [h, w, channels] with at most four of them."""
    return len(shape) == 2 or (len(shape) == 3 and 1 <= shape[2] <= 4)


def to_picture(image: NDArray[Any]) -> NDArray[np.uint8]:
    """uint8 [h, w] grey or [h, w, 3] in colour, h and w at most `PICTURE_SIDE`.

    One or two channels are grey (with alpha, which is left out), three or four are RGB (with alpha). Floats between 0 and 1 are
    taken as shades; others are stretched between the smallest and the largest number of the image.
    """
    if image.ndim == 3:
        image = image[..., 0] if image.shape[2] < 3 else image[..., :3]
    shades = image if image.dtype == np.uint8 else _to_shades(image)
    picture: NDArray[np.uint8] = np.rint(_shrink(shades.astype(np.float32))).astype(np.uint8)
    return picture


def _to_shades(image: NDArray[Any]) -> NDArray[np.float64]:
    """Floats as 0 to 255."""
    known = np.nan_to_num(image.astype(np.float64))
    low, high = float(known.min()), float(known.max())
    if low < 0 or high > 1:
        known = (known - low) / ((high - low) or 1.0)
    return known * 255


def _shrink(image: NDArray[Any]) -> NDArray[Any]:
    """The mean of neighbouring pixels, so that the longer side is at most `PICTURE_SIDE`."""
    height, width = image.shape[:2]
    share = min(1.0, PICTURE_SIDE / max(height, width))
    for axis, side in enumerate((height, width)):
        edges = np.linspace(0, side, max(1, round(side * share)) + 1).astype(np.int64)
        widths = np.diff(edges).reshape([-1 if each == axis else 1 for each in range(image.ndim)])
        image = np.add.reduceat(image, edges[:-1], axis=axis) / widths.astype(np.float32)
    return image
