"""Own models of several kinds, and random data of their shapes: what `scripts/bench --own-models` trains.

Named by the job as `model.build` and `data.source`, and taken by `own_models_fit` as well.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from job.datasets import Dataset

_TEST_EXAMPLES = 64


def _data(*shape: int, examples: int) -> "Dataset":
    from job.datasets import Dataset

    random = np.random.default_rng(0)
    count = examples + _TEST_EXAMPLES
    images = random.integers(0, 256, (count, *shape), np.uint8)
    labels = np.arange(count) % 10
    names = tuple(str(digit) for digit in range(10))
    train, test = slice(_TEST_EXAMPLES, None), slice(_TEST_EXAMPLES)
    return Dataset(
        train_images=images[train],
        train_labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
        class_names=names,
    )


def grey_28() -> "Dataset":
    """6,400 images of 28x28."""
    return _data(28, 28, examples=6400)


def colour_32() -> "Dataset":
    """1,280 images of 32x32x3."""
    return _data(32, 32, 3, examples=1280)


def colour_96() -> "Dataset":
    """256 images of 96x96x3."""
    return _data(96, 96, 3, examples=256)


def dense(input_shape: tuple[int, ...], num_classes: int) -> Any:
    """The reference model, written as an own one."""
    import keras

    hidden = [keras.layers.Dense(512, activation="sigmoid") for _ in range(2)]
    return keras.Sequential(
        [keras.Input(input_shape), keras.layers.Flatten(), *hidden, keras.layers.Dense(num_classes, "softmax")]
    )


def dense_normalized(input_shape: tuple[int, ...], num_classes: int) -> Any:
    """Dense layers with BatchNormalization."""
    return _dense_with("BatchNormalization", input_shape, num_classes)


def dense_layer_normalized(input_shape: tuple[int, ...], num_classes: int) -> Any:
    """Dense layers with LayerNormalization."""
    return _dense_with("LayerNormalization", input_shape, num_classes)


def _dense_with(name: str, input_shape: tuple[int, ...], num_classes: int) -> Any:
    import keras

    normalization = getattr(keras.layers, name)
    layers = [keras.Input(input_shape), keras.layers.Flatten()]
    for _ in range(2):
        layers += [keras.layers.Dense(512), normalization(), keras.layers.Activation("relu")]
    return keras.Sequential([*layers, keras.layers.Dense(num_classes, activation="softmax")])


def convnet(input_shape: tuple[int, ...], num_classes: int) -> Any:
    """The convnet of docs/own-model.md."""
    return _convnet(input_shape, num_classes, augmentation=[])


def augmented_convnet(input_shape: tuple[int, ...], num_classes: int) -> Any:
    """The same, with augmentation that XLA does not know."""
    import keras

    augmentation = [
        keras.layers.RandomFlip("horizontal"),
        keras.layers.RandomTranslation(0.1, 0.1),
        keras.layers.RandomRotation(0.05),
    ]
    return _convnet(input_shape, num_classes, augmentation=augmentation)


def _convnet(input_shape: tuple[int, ...], num_classes: int, *, augmentation: list[Any]) -> Any:
    import keras

    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Reshape((*input_shape, 1)),
            *augmentation,
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(num_classes, activation="softmax"),
        ]
    )


def resnet20(input_shape: tuple[int, ...], num_classes: int) -> Any:
    """ResNet-20 for 32x32x3 (He et al., 2015, section 4.2): 0.27 M parameters."""
    import keras

    inputs = keras.Input(input_shape)
    x = _convolve(inputs, 16, 1)
    for width, first_stride in ((16, 1), (32, 2), (64, 2)):
        for block in range(3):
            stride = first_stride if block == 0 else 1
            y = _convolve(_convolve(x, width, stride), width, 1, activation=None)
            if stride > 1:
                x = keras.layers.Conv2D(width, 1, strides=stride, use_bias=False)(x)
            x = keras.layers.Activation("relu")(keras.layers.Add()([x, y]))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(num_classes, activation="softmax")(x))


def _convolve(x: Any, width: int, stride: int, activation: str | None = "relu") -> Any:
    import keras

    x = keras.layers.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    return keras.layers.Activation(activation)(x) if activation else x


def mobilenet(input_shape: tuple[int, ...], num_classes: int) -> Any:
    """Keras' MobileNet, 3.2 M parameters."""
    import keras

    return keras.applications.MobileNet(input_shape=input_shape, weights=None, classes=num_classes)
