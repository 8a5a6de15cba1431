"""The step of a user's own model, traced before the training: what only the graph shows, and what no checkpoint can hold.

Nothing is executed: the graphs are made, read and thrown away.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from job.errors import ConfigError
from job.plugins import frames_of, user_code
from job.training.recipe import Recipe
from job.training.steps import make_replica_step, make_sums

_FIELD = "model.build"
_PYTHON_OPS = {"PyFunc", "PyFuncStateless", "EagerPyFunc"}
_RANDOM_OPS = {
    *("RandomStandardNormal", "RandomUniform", "RandomUniformInt", "TruncatedNormal", "ParameterizedTruncatedNormal"),
    *("Multinomial", "RandomShuffle", "RandomGamma", "RandomPoisson", "RandomPoissonV2", "RandomCrop"),
    *("SampleDistortedBoundingBox", "SampleDistortedBoundingBoxV2"),
}


def try_step(
    make: Callable[[], tuple[Any, Recipe]],
    *,
    name: str,
    input_shape: tuple[int, ...],
    num_classes: int,
    batch_size: int,
) -> None:
    """Trace an update of a model that is thrown away afterwards.

    Args:
        make: builds model and recipe; called inside the scope of a strategy with one replica.
        name: the user's function, for the messages.
        batch_size: examples of one replica.

    Raises:
        ConfigError: loss, gradients or optimizer raise, or the step holds what no checkpoint can hold.
    """
    import tensorflow as tf

    strategy = tf.distribute.OneDeviceStrategy("/cpu:0")
    with strategy.scope():
        model, recipe = make()
        sums = make_sums()
        with user_code(name, field=_FIELD, doing="its optimizer cannot be built"):
            recipe.optimizer.build(model.trainable_variables)
    step = make_replica_step(strategy, model=model, recipe=recipe, sums=sums)
    specs = [
        ((batch_size, *input_shape), "images"),
        ((batch_size, num_classes), "labels"),
        ((batch_size,), "weights"),
        ((), "n"),
    ]
    with user_code(name, field=_FIELD, doing="a training step cannot be made"):
        traced = tf.function(lambda *args: strategy.run(step, args=args)).get_concrete_function(
            *(tf.TensorSpec(shape, tf.float32, name=said) for shape, said in specs)
        )
    check_graph(traced, [*variables_of(model), *recipe.optimizer.variables, *sums.values()], name=name)


def variables_of(model: Any) -> list[Any]:
    """What a graph of the model may read: metrics that a layer updates change nothing that is trained."""
    return [*model.variables, *model.metrics_variables]


def check_graph(traced: Any, variables: Iterable[Any], *, name: str) -> None:
    """Refuse a graph that depends on more than its inputs and the known variables.

    Args:
        traced: a concrete function.

    Raises:
        ConfigError: it does, naming the operation and the user's lines.
    """
    for kind, where, frames in _operations(traced.graph):
        reason = _reason_against(kind)
        if reason:
            raise ConfigError("\n".join([f"{_FIELD}: {name}: its graph has {kind} at {where}, {reason}", *frames]))
    known = {id(_handle(variable)) for variable in variables}
    for outer, inner in traced.graph.captures:
        if _is_variable(outer) and id(outer) not in known:
            raise ConfigError("\n".join([f"{_FIELD}: {name}: {_say_foreign(outer, inner)}", *_frames_of_use(inner)]))


def _reason_against(kind: str) -> str:
    if kind in _PYTHON_OPS:
        return "a call of Python (numpy_function, py_function), which neither XLA nor the exported model can hold; use keras.ops"
    if kind in _RANDOM_OPS or kind.endswith("CandidateSampler"):
        return (
            "whose random state no checkpoint holds: a resumed run would draw other numbers; use keras.random with a "
            "keras.random.SeedGenerator that is an attribute of the layer"
        )
    return ""


def _operations(graph: Any) -> Iterator[tuple[str, str, list[str]]]:
    """(type, name, the user's lines) of all operations, those of loops, branches and called functions too."""
    for operation in graph.get_operations():
        is_odd = bool(_reason_against(operation.type))
        yield operation.type, operation.name, frames_of(operation.traceback) if is_odd else []
    for function in graph.as_graph_def().library.function:
        for node in function.node_def:
            yield node.op, node.name, []


def _handle(variable: Any) -> Any:
    """Of a variable of Keras, or of TensorFlow."""
    return variable.value.handle if hasattr(variable, "path") else variable.handle


def _is_variable(captured: Any) -> bool:
    import tensorflow as tf

    data = getattr(captured, "_handle_data", None)  # a lookup table has none
    return captured.dtype == tf.resource and data is not None and bool(data.is_set)


def _say_foreign(outer: Any, inner: Any) -> str:
    from keras.src.backend.common import global_state

    seed = global_state.get_global_attribute("global_seed_generator")
    if seed is not None and _handle(seed.state) is outer:
        return (
            "it draws from keras.random without a seed, that is from a state that no checkpoint holds; pass "
            "seed=keras.random.SeedGenerator(...), made in the layer's __init__ as an attribute of it"
        )
    used = [operation.name for operation in inner.consumers()]
    return (
        f"it uses a variable, at {used[0] if used else inner.name}, that is not among model.variables: no checkpoint and no "
        "export holds it; use self.add_weight, or make the layer that has it an attribute"
    )


def _frames_of_use(inner: Any) -> list[str]:
    return [frame for operation in inner.consumers()[:1] for frame in frames_of(operation.traceback)]
