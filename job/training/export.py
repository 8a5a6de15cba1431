"""The SavedModel made for serving, its weights digest, and the check that it predicts what was evaluated.

The signature takes raw images: reshape, cast and /255 are inside the graph, so serving cannot differ from training.
"""

import contextlib
import errno
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job import ambient
from job.datasets.dataset import Images
from job.datasets.load import LoadedDataset
from job.digests import digest_of_arrays
from job.errors import AccessDeniedError, IntegrityError, JobError, UnavailableError
from job.texts import one_line
from job.training.evaluation import SMALL_BATCH_EXAMPLES, Probabilities, make_batches, preprocess
from job.training.graphs import check_graphs
from job.training.pictures import picture_mistakes

SAMPLE_IMAGES = 64
"""Test images kept beside the predictions, so that a model can be verified without its dataset."""
SIGNATURE = "serving_default"
TOLERANCE = 1e-4
"""Largest difference of a probability between two programs on two kinds of CPU that is still the same model."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_ADVICE = "make room there, or set TMPDIR to another folder"
_PROBE_BYTES = 100_000
"""About what the graph of a small model takes beside its weights."""


@contextlib.contextmanager
def temporary_folder(purpose: str) -> Iterator[Path]:
    """A folder in TMPDIR, gone afterwards.

    Args:
        purpose: part of its name.

    Raises:
        UnavailableError: there is no such folder, or no room in it.
        AccessDeniedError: it cannot be written.
    """
    with _said_of_temporary_folder(), tempfile.TemporaryDirectory(prefix=f"mnist-{purpose}-") as folder:
        yield Path(folder)


def check_temporary_folder(*, num_bytes: int = 0) -> None:
    """Find out before the training whether the export can be written.

    Args:
        num_bytes: of the model's weights, once they are known.

    Raises:
        UnavailableError, AccessDeniedError: as from `temporary_folder`.
    """
    with temporary_folder("check") as folder:
        free_bytes = shutil.disk_usage(folder).free
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
    if free_bytes < num_bytes:
        raise UnavailableError(
            f"TMPDIR: the exported model takes {num_bytes / 1e6:.1f} MB in {ambient.temporary_root()}, "
            f"{free_bytes / 1e6:.1f} MB are free; {_ADVICE}"
        )


@contextlib.contextmanager
def _said_of_temporary_folder() -> Iterator[None]:
    """Turn what the operating system says about TMPDIR, itself or through TensorFlow, into what the user can do."""
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        reason, number = one_line(error, limit=200), getattr(error, "errno", None)
        if number in _NO_ROOM or "No space left on device" in reason or "No usable temporary directory" in reason:
            raise UnavailableError(f"TMPDIR: no room for temporary files: {reason}; {_ADVICE}") from error
        if number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG):
            raise AccessDeniedError(f"TMPDIR: temporary files cannot be written: {reason}; {_ADVICE}") from error
        raise


def save_model(
    model: Any, folder: Path, *, image_shape: tuple[int, ...], image_dtype: np.dtype[Any], input_shape: tuple[int, ...]
) -> None:
    """Write a SavedModel: `image` [N, *image_shape] -> `probabilities` float32 [N, C], `digit` int64 [N].

    The input is called `features` where it is a table, float32 [N, D].

    Args:
        image_dtype: uint8 or float32, as the images are.
        model: a Keras model built outside any strategy scope; a mirrored one would be saved with its replicas.

    Raises:
        UnavailableError: no room in the folder.
    """
    import tensorflow as tf

    module = tf.Module()
    # A plain list: Keras' own export stores every weight twice.
    module.weights = [variable.value for variable in model.weights]

    def serve(image: Any) -> dict[str, Any]:
        probabilities = model(preprocess(image, input_shape=input_shape), training=False)
        probabilities = tf.cast(probabilities, tf.float32)
        return {"probabilities": probabilities, "digit": tf.argmax(probabilities, 1)}

    name = "features" if len(image_shape) == 1 else "image"
    signature = [tf.TensorSpec((None, *image_shape), image_dtype, name=name)]
    module.serve = tf.function(serve, input_signature=signature)
    with _said_of_temporary_folder():
        tf.saved_model.save(module, str(folder), signatures={SIGNATURE: module.serve})


def predict_with_export(folder: Path, images: Images, *, batch_examples: int = SMALL_BATCH_EXAMPLES) -> Probabilities:
    """Load a SavedModel of this process as a server would and classify raw images, `batch_examples` at a time.

    One that another run has made goes to `foreign.classify`.

    Raises:
        IntegrityError: it may do more than compute, cannot be loaded, or lacks the signature.
    """
    check_graphs(folder)
    return predict_batches(folder, make_batches(images, batch_examples=batch_examples))


def predict_batches(folder: Path, batches: Iterable[Images]) -> Probabilities:
    """Load a SavedModel that `check_graphs` has passed, and classify.

    Raises:
        IntegrityError: it cannot be loaded, or lacks the signature.
    """
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(folder))
        predict = loaded.signatures[SIGNATURE]
        (name,) = predict.structured_input_signature[1]
        parts = [predict(**{name: tf.constant(batch)})["probabilities"].numpy() for batch in batches]
        return np.concatenate(parts).astype(np.float32)
    except (OSError, ValueError, KeyError, tf.errors.OpError) as error:
        reason = one_line(error, limit=200)
        raise IntegrityError(f"export: the SavedModel cannot be loaded and called: {reason}") from error


def check_predictions(received: Probabilities, recorded: Probabilities) -> None:
    """Compare what the export predicts with what was evaluated.

    Raises:
        IntegrityError: another shape, or a probability that differs by more than `TOLERANCE`.
    """
    if received.shape != recorded.shape:
        raise IntegrityError(f"export: predictions have shape {received.shape}, recorded were {recorded.shape}")
    difference = float(np.abs(received - recorded).max())
    if not difference <= TOLERANCE:
        raise IntegrityError(
            f"export: predictions differ by {difference:.2g} from the recorded ones, at most {TOLERANCE}"
        )


def weights_digest(arrays: list[NDArray[Any]]) -> str:
    """SHA-256 over shapes and bytes of a model's weights, in the model's order."""
    return digest_of_arrays(enumerate(arrays))


def weights_of_export(folder: Path) -> list[NDArray[Any]]:
    """The weights inside a SavedModel, in the model's order, read from its files without running it."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(folder / "variables" / "variables"))
    keys = {}
    for key in reader.get_variable_to_shape_map():
        found = re.fullmatch(r"weights/(\d+)/\.ATTRIBUTES/VARIABLE_VALUE", key)
        if found:
            keys[int(found.group(1))] = key
    return [reader.get_tensor(keys[position]) for position in sorted(keys)]


def to_predictions_file(
    data: LoadedDataset, probabilities: Probabilities, *, wrong: Sequence[dict[str, Any]] = ()
) -> bytes:
    """Predictions of the whole test split, its labels, the first images, and pictures of the mistakes, as one safetensors file.

    Args:
        wrong: the mistakes, the most confident first, as in `evaluation.Scores`.
    """
    from safetensors.numpy import save

    labels = data.dataset.test_labels
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "probabilities": np.asarray(probabilities, order="C"),
        "labels": np.asarray(labels, order="C"),
        "sample_images": np.asarray(data.dataset.test_images[:SAMPLE_IMAGES], order="C"),
        **picture_mistakes(data.dataset.test_images, wrong),
    }
    meta = {"dataset": data.name, "dataset_digest": data.digest, "class_names": data.dataset.class_names}
    return save(arrays, {"predictions": json.dumps(meta, sort_keys=True)})
