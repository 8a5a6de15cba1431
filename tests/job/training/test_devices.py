"""How the step is compiled: a rule on facts about the model and the devices, for CPUs and GPUs alike without having one."""

from collections.abc import Callable
from typing import Any

import pytest

from job.config import ModelSection, TrainSection
from job.errors import ConfigError
from job.training.devices import resolve_compile
from job.training.model import build_model

pytestmark = pytest.mark.tf

CPU, GPU = ("/job:localhost/replica:0/task:0/device:CPU:0",), ("/job:localhost/replica:0/task:0/device:GPU:0",)
SHAPE = (8, 8)


def sequential(*layers: Any) -> Any:
    """A model of these layers and a last one."""
    import keras

    return keras.Sequential([keras.Input(SHAPE), *layers, keras.layers.Dense(3, activation="softmax")])


def reference(**settings: Any) -> Any:
    return build_model(ModelSection(**settings), image_shape=SHAPE, num_classes=3, seed=1, precision="float32")


def dense() -> Any:
    from keras import layers

    return sequential(layers.Flatten(), layers.Dense(4, activation="gelu"), layers.Activation("relu"))


def functional_dense() -> Any:
    import keras

    inputs = keras.Input(SHAPE)
    hidden = keras.layers.Dense(4)(keras.layers.Flatten()(inputs))
    return keras.Model(inputs, keras.Sequential([keras.layers.Dense(3)])(hidden))


def dense_with_dropout() -> Any:
    from keras import layers

    return sequential(layers.Flatten(), layers.Dropout(0.1))


def dense_in_dense() -> Any:
    """A dense model with a convolution deep inside."""
    import keras

    inside = keras.Sequential([keras.layers.Reshape((8, 8, 1)), keras.Sequential([keras.layers.Conv2D(2, 3)])])
    return keras.Sequential([keras.Input(SHAPE), inside, keras.layers.Flatten(), keras.layers.Dense(3)])


def convnet() -> Any:
    from keras import layers

    return sequential(layers.Reshape((8, 8, 1)), layers.Conv2D(2, 3), layers.Flatten())


def augmented() -> Any:
    from keras import layers

    shaken = layers.RandomTranslation(0.1, 0.1, name="shaken")
    return sequential(layers.Reshape((8, 8, 1)), shaken, layers.Conv2D(2, 3), layers.Flatten())


def own_layer() -> Any:
    """A layer of the user's own that is called like one of Keras'."""
    import keras

    class Dense(keras.layers.Dense):  # type: ignore[misc]
        pass

    return keras.Sequential([keras.Input(SHAPE), keras.layers.Flatten(), Dense(3)])


def subclassed() -> Any:
    import keras

    class Mine(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.flatten, self.last = keras.layers.Flatten(), keras.layers.Dense(3)

        def call(self, x: Any) -> Any:
            return self.last(self.flatten(x))

    model = Mine()
    model(keras.ops.zeros((1, *SHAPE)))
    return model


def resolve(model: Any, devices: tuple[str, ...] = CPU, *, threads: int = 2, wanted: str = "auto", **more: Any) -> str:
    train = TrainSection.model_validate({"compile": wanted})
    return resolve_compile(
        train, **{"is_own": True, "model": model, "device_names": devices, "intra_op_threads": threads} | more
    )


@pytest.mark.parametrize(
    ("make", "on_cpu", "on_gpu"),
    [
        (dense, "xla", "xla"),
        (functional_dense, "xla", "xla"),
        (dense_with_dropout, "graph", "xla"),
        (dense_in_dense, "graph", "xla"),
        (convnet, "graph", "xla"),
        (augmented, "graph", "graph"),
        (own_layer, "graph", "xla"),
        (subclassed, "graph", "xla"),
    ],
)
def test_auto_looks_at_the_layers_of_an_own_model(make: Callable[[], Any], on_cpu: str, on_gpu: str) -> None:
    model = make()
    assert (resolve(model), resolve(model, GPU, threads=1)) == (on_cpu, on_gpu)
    assert resolve(model, threads=1) == "graph"
    assert resolve(model, CPU * 2) == resolve(model, GPU * 2) == "graph"


@pytest.mark.parametrize("devices", [CPU, GPU])
@pytest.mark.parametrize("activation", ["sigmoid", "gelu", "leaky_relu"])
def test_auto_is_for_the_reference_model_what_it_always_was(devices: tuple[str, ...], activation: str) -> None:
    model = reference(hidden_units=(4, 4), activation=activation)
    assert resolve(model, devices, is_own=False) == "xla"
    assert resolve(model, devices, is_own=False, threads=1) == "graph"
    assert resolve(model, devices * 2, is_own=False) == "graph"
    assert resolve(reference(dropout=0.1), devices, is_own=False) == "graph"


def test_auto_goes_on_as_the_run_began_unless_it_cannot() -> None:
    assert resolve(dense(), threads=1, recorded="xla") == "xla"
    assert resolve(dense(), threads=2, recorded="graph") == "graph"
    assert resolve(convnet(), recorded="xla") == "xla"
    assert resolve(convnet(), GPU, recorded="graph") == "graph"
    assert resolve(dense(), CPU * 2, recorded="xla") == "graph"
    assert resolve(augmented(), recorded="xla") == "graph"


def test_what_is_asked_for_comes_before_what_is_recorded() -> None:
    assert resolve(dense(), wanted="graph", recorded="xla") == "graph"
    assert resolve(convnet(), wanted="xla", recorded="graph") == "xla"


def test_xla_that_cannot_be_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"^train\.compile: xla works with one replica, received 2; use graph or auto$"
    ):
        resolve(dense(), CPU * 2, wanted="xla")
    with pytest.raises(
        ConfigError, match=r"compile: xla does not support layer shaken \(RandomTranslation\) of the model; use graph"
    ):
        resolve(augmented(), wanted="xla")
