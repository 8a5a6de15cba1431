"""A model of the user's own: built, tried with one batch before step 1, and told apart from other models.

What is wrong with it ends in a `ConfigError` that names the user's own lines: found before anything is trained.
"""

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from job.config import ModelSection
from job.digests import sha256_hex
from job.errors import ConfigError
from job.plugins import call_function, digest_of_sources, user_code
from job.runs.identity import BY_POSITION
from job.training.devices import layers_of
from job.training.names import rename, renamed_by_position
from job.training.own_recipe import describe_recipe
from job.training.trial import check_graph, variables_of

_FIELD = "model.build"
_TRIED_EXAMPLES = 8
_SUM_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
_CALLED = "the model cannot be called on one batch of images"


def build(config: ModelSection, *, input_shape: tuple[int, ...], num_classes: int) -> Any:
    """Call the user's function; the model is built for `input_shape`, without the batch.

    Raises:
        ConfigError: it raises, or returns no model that gives `num_classes` probabilities and has something to train.
    """
    import keras

    name = _name(config)
    model = call_function(name, input_shape, num_classes, field=_FIELD, keywords=config.args)
    if not isinstance(model, keras.Model):
        raise ConfigError(f"{_FIELD}: {name} must return a keras.Model, received {type(model).__name__}")
    with user_code(name, field=_FIELD, doing=_CALLED):
        if isinstance(model, keras.Sequential) and not model.built:
            model.build((None, *input_shape))
        elif not model.built or not model.variables:
            model(keras.ops.zeros((1, *input_shape)), training=False)  # builds the layers of a subclassed model
    if _says_shapes(model):
        _check_shapes(model, name, input_shape=input_shape, num_classes=num_classes)
    if not model.trainable_variables:
        raise ConfigError(
            f"{_FIELD}: {name} has nothing to train: every layer is frozen (trainable=False) or has no weights"
        )
    return model


def try_once(
    model: Any, config: ModelSection, *, examples: NDArray[Any], num_classes: int, precision: str
) -> NDArray[np.float32]:
    """Call the model as training and evaluation will; it may change the model's state, which must not be used for training.

    Args:
        examples: float32 [N, *input_shape], as the model gets them.

    Returns:
        Probabilities of the first examples.

    Raises:
        ConfigError: it raises, its outputs are not `num_classes` probabilities for each example, or its state is not all its own.
    """
    import tensorflow as tf

    name, batch = _name(config), tf.constant(examples[:_TRIED_EXAMPLES])
    with user_code(name, field=_FIELD, doing=_CALLED):
        outputs = model(batch, training=False)
    found = _check_outputs(outputs, name, num_examples=len(batch), num_classes=num_classes, precision=precision)
    with user_code(name, field=_FIELD, doing=f"{_CALLED} in training"), tf.GradientTape() as tape:
        outputs = model(batch, training=True)
        gradients = tape.gradient(tf.reduce_sum(outputs * outputs), model.trainable_variables)
    if all(gradient is None for gradient in gradients):
        raise ConfigError(f"{_FIELD}: no weight of {name} has a gradient: its outputs do not depend on what is trained")
    spec = tf.TensorSpec((None, *batch.shape[1:]), batch.dtype)
    graphs = tf.function(lambda images, training: model(images, training=training))
    for training in (True, False):
        with user_code(name, field=_FIELD, doing=f"{_CALLED} in a TensorFlow graph"):
            traced = graphs.get_concrete_function(spec, training)
        check_graph(traced, variables_of(model), name=name)
    return found


def check_same(model: Any, before: Mapping[str, Any], config: ModelSection) -> None:
    """Prove that a second call of the user's function has made the model that was described before.

    Raises:
        ConfigError: it has not.
    """
    now = describe(model, config)
    odd = [
        what for what in before if before[what] != now.get(what) and what != "model"
    ]  # names that Keras counts may differ
    if odd:
        what = "model" if odd[0] == BY_POSITION else odd[0].replace("_", " ")
        raise ConfigError(
            f"{_FIELD}: {_name(config)} makes another model each time it is called (another {what}); draw "
            "random numbers from keras.random or numpy.random's global generator, which are seeded; keep no state between calls"
        )


def describe(model: Any, config: ModelSection) -> dict[str, Any]:
    """What tells this model from others, for `identity.result_inputs`: the same on all machines.

    Returns:
        `model`: SHA-256 of what the model says that it is, names of variables included.
        `model_by_position`: the same without the count in names that Keras made up; it tells models apart, and is in no digest.
        `initial_weights`: two sums over all weights in a few digits: the last bits differ from one kind of CPU or GPU to another.
        `source`: SHA-256 of the user's package; absent when the model consists of Keras' own parts, which say all about it.
        `recipe`: optimizer, loss and metrics of a compiled model; absent when it is not compiled.
    """
    text = _say_model(model)
    described: dict[str, Any] = {
        "model": sha256_hex(text.encode()),
        BY_POSITION: sha256_hex(rename(text, renamed_by_position(model)).encode()),
        "initial_weights": _fingerprint(model),
    }
    source = None if _is_all_of_keras(model, text) else digest_of_sources(_name(config))
    recipe = describe_recipe(model)
    return described | ({"source": source} if source else {}) | ({"recipe": recipe} if recipe else {})


def _name(config: ModelSection) -> str:
    assert config.build is not None  # its callers ask before
    return config.build


def _says_shapes(model: Any) -> bool:
    """A subclassed model may not know its shapes; the batch that is tried shows them."""
    try:
        return model.output_shape is not None
    except (AttributeError, ValueError, NotImplementedError):
        return False


def _check_shapes(model: Any, name: str, *, input_shape: tuple[int, ...], num_classes: int) -> None:
    received = model.input_shape
    if isinstance(received, tuple) and received[1:] != input_shape and None not in received[1:]:
        raise ConfigError(
            f"{_FIELD}: {name} takes inputs of shape {received[1:]}, one image of these data has {input_shape}; use the "
            "input_shape that the function is called with"
        )
    if isinstance(received, tuple) and received[:1] not in ((), (None,)):
        raise ConfigError(
            f"{_FIELD}: {name} takes batches of {received[0]} only; leave the batch size open: keras.Input(input_shape)"
        )
    if model.output_shape != (None, num_classes):
        raise ConfigError(
            f"{_FIELD}: {name} must end in {num_classes} probabilities for each image, its output shape is {model.output_shape}"
        )


def _check_outputs(
    outputs: Any, name: str, *, num_examples: int, num_classes: int, precision: str
) -> NDArray[np.float32]:
    import keras

    wanted = f"must end in {num_classes} probabilities for each image"
    if not keras.ops.is_tensor(outputs):
        raise ConfigError(f"{_FIELD}: {name} {wanted}, in one tensor, received {type(outputs).__name__}")
    if tuple(outputs.shape) != (num_examples, num_classes):
        raise ConfigError(
            f"{_FIELD}: {name} {wanted}: shape {(num_examples, num_classes)} for {num_examples} images, received "
            f"{tuple(outputs.shape)}"
        )
    values = np.asarray(keras.ops.cast(outputs, "float32"), np.float64)
    if not np.isfinite(values).all():
        raise ConfigError(f"{_FIELD}: {name} gives values that are not finite before any training")
    sums = values.sum(axis=1)
    if values.min() < 0 or np.abs(sums - 1).max() > _SUM_TOLERANCE[precision]:
        raise ConfigError(
            f"{_FIELD}: {name} {wanted}: each row must be positive and sum to 1, the first image's has a smallest value of "
            f"{values[0].min():.3g} and sums to {sums[0]:.3g}; end in activation='softmax' (no logits, no sigmoid)"
        )
    return values.astype(np.float32)


def _say_model(model: Any) -> str:
    """The model's own config, or its layers and variables where it has none."""
    try:
        with warnings.catch_warnings(action="ignore"):  # that a lambda could not be read back
            text = model.to_json()
    except (NotImplementedError, TypeError, ValueError):  # a subclassed model that cannot say what it is
        layers = [type(layer).__qualname__ for layer in layers_of(model)]
        text = json.dumps([layers, [(variable.path, tuple(variable.shape)) for variable in model.variables]])
    return re.sub(
        r'"class_name": "__lambda__", "config": \{"code": "[^"]*"', '"class_name": "__lambda__", "config": {', text
    )


def _fingerprint(model: Any) -> str:
    """The norm of all weights, and their sum with changing factors, relative to it: another order of weights shows too."""
    square = mixed = 0.0
    position = 0
    for variable in model.weights:
        values = np.asarray(variable.numpy(), np.float64).ravel()
        square += float(values @ values)
        mixed += float(values @ np.cos(np.arange(position, position + values.size) % 104_729))
        position += values.size
    norm = square**0.5
    return f"{norm:.4e} {mixed / norm if norm else 0.0:.3f}"


def _is_all_of_keras(model: Any, text: str) -> bool:
    """Whether what the model says tells all about it: no class, no function and no method of the user's own."""
    modules = set(re.findall(r'"module": "([^"]+)"', text))
    has_functions = any(f'"class_name": "{kind}"' in text for kind in ("function", "method", "__lambda__"))
    has_methods = any("call" in vars(layer) for layer in layers_of(model))
    are_kerass = bool(modules) and all(re.match(r"keras\b|builtins$", module) for module in modules)
    return are_kerass and not has_functions and not has_methods
