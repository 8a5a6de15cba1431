"""The Keras model: the reference model, or the user's own.

Owns architecture and initial weights, which depend only on config and seed. Build it inside `strategy.scope()`.
"""

import math
from typing import Any

from job.config import ModelSection
from job.plugins import import_function
from job.training import own_model


def model_input_shape(config: ModelSection, *, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """What one example looks like to the model: flat for the reference model, an image for an own one."""
    return image_shape if config.build else (math.prod(image_shape),)


def build_model(
    config: ModelSection, *, image_shape: tuple[int, ...], num_classes: int, seed: int, precision: str
) -> Any:
    """Build a Keras model: float32 [N, *input_shape] in 0..1 -> probabilities [N, num_classes].

    Every call with the same arguments gives the same initial weights and the same names of variables.

    Raises:
        ConfigError: the user's function is missing, raises or returns something else.
    """
    import keras
    from keras.src.utils.naming import reset_uids

    if config.build:
        import_function(config.build, field="model.build")  # before: a module may make layers when it is imported
    reset_uids()  # else the second model of a process is called sequential_1, and its variables too

    keras.utils.set_random_seed(seed)
    keras.config.set_dtype_policy("mixed_bfloat16" if precision == "bfloat16" else "float32")
    input_shape = model_input_shape(config, image_shape=image_shape)
    if config.build is None:
        return _reference_model(config, keras, input_shape=input_shape, num_classes=num_classes)
    return own_model.build(config, input_shape=input_shape, num_classes=num_classes)


def _reference_model(config: ModelSection, keras: Any, *, input_shape: tuple[int, ...], num_classes: int) -> Any:
    layers = [keras.Input(input_shape, name="image")]
    for position, width in enumerate(config.hidden_units, start=1):
        layers.append(keras.layers.Dense(width, activation=config.activation, name=f"hidden_{position}"))
        if config.dropout:
            layers.append(keras.layers.Dropout(config.dropout, name=f"dropout_{position}"))
    # Softmax in bfloat16 would lose the small probabilities that the loss is made of.
    layers.append(keras.layers.Dense(num_classes, activation="softmax", dtype="float32", name="probabilities"))
    return keras.Sequential(layers, name="mnist")
