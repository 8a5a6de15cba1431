"""S4: a SavedModel from the store computes and does nothing else; what could do more is refused before it is loaded."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.errors import IntegrityError
from job.training import export
from job.training.graphs import MAX_BYTES, MAX_NODES, check_graphs, copy_for_reading
from job.training.operations import ALLOWED, RESTORING, SAVING
from tests.job.training.hostile_models import change_file, hostile_graphs, write_model

pytestmark = [pytest.mark.tf, pytest.mark.security("S4")]


def refusal_of(folder: Path) -> str:
    """What the check says about a SavedModel; empty: it passes."""
    try:
        check_graphs(folder)
    except IntegrityError as error:
        return str(error)
    return ""


def test_each_operation_that_does_more_than_compute_is_named_before_it_is_loaded(tmp_path: Path) -> None:
    canary, wrong = tmp_path / "canary", {}
    for name, (operation, graph) in hostile_graphs(canary).items():
        said = refusal_of(write_model(tmp_path / name, graph))
        if not re.search(rf"has the operation '{operation}' \(node ", said):
            wrong[name] = said

    assert wrong == {}
    assert not canary.exists()


def test_what_would_run_while_it_is_loaded_is_refused(tmp_path: Path) -> None:
    import tensorflow as tf

    words = tmp_path / "words"
    words.write_text("a\nb\n")
    read_words = tf.lookup.TextFileInitializer(
        str(words), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    table = tf.lookup.StaticHashTable(read_words, -1)
    folder = write_model(
        tmp_path / "table", lambda x: x + tf.cast(table.lookup(tf.constant("a")), tf.float32), owned=table
    )

    assert "has the operation 'InitializeTableFromTextFileV2' (node " in refusal_of(folder)


def test_table_made_of_constants_passes(tmp_path: Path) -> None:
    import tensorflow as tf

    table = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer([1, 2], [3.0, 4.0]), 0.0)
    folder = write_model(tmp_path / "table", lambda x: x + table.lookup(tf.constant(1)), owned=table)

    assert refusal_of(folder) == ""


def call(node: Any, function: str) -> None:
    """Have a node name a function."""
    node.op = "PartitionedCall"
    node.attr["f"].func.name = function


def saver_node(graph: Any, name: str) -> Any:
    return next(node for node in graph.graph_def.node if node.name == name.partition(":")[0])


def saver_function(graph: Any, operation: str) -> Any:
    functions = graph.graph_def.library.function
    return next(function for function in functions if any(node.op == operation for node in function.node_def))


def use_saver_elsewhere(model: Any) -> None:
    graph = model.meta_graphs[0]
    call(graph.graph_def.node.add(name="again"), saver_function(graph, "SaveV2").signature.name)


def use_saver_in_an_object(model: Any) -> None:
    graph = model.meta_graphs[0]
    function = saver_function(graph, "SaveV2").signature.name
    graph.object_graph_def.nodes.add().bare_concrete_function.concrete_function_name = function


def offer_saver_as_signature(model: Any) -> None:
    graph = model.meta_graphs[0]
    graph.signature_def["serving_default"].outputs["more"].name = graph.saver_def.save_tensor_name


def save_to_own_path(model: Any) -> None:
    graph = model.meta_graphs[0]
    path = saver_node(graph, graph.saver_def.filename_tensor_name)
    path.op = "Const"
    path.ClearField("attr")


def restore_from_own_path(model: Any) -> None:
    restore = next(
        node for node in saver_function(model.meta_graphs[0], "RestoreV2").node_def if node.op == "RestoreV2"
    )
    restore.input[0] = "RestoreV2/tensor_names:output:0"


def write_while_restoring(model: Any) -> None:
    saver_function(model.meta_graphs[0], "RestoreV2").node_def.add(name="w", op="SaveV2")


def call_unknown(model: Any) -> None:
    call(model.meta_graphs[0].graph_def.node.add(name="n"), "WriteFile")


def hide_in_list(model: Any) -> None:
    node = model.meta_graphs[0].graph_def.node.add(name="n", op="Case")
    node.attr["branches"].list.func.add().attr["f"].func.name = "WriteFile"


def function_like_an_operation(model: Any) -> None:
    model.meta_graphs[0].graph_def.library.function.add().signature.name = "WriteFile"


def variant_constant(model: Any) -> None:
    node = model.meta_graphs[0].graph_def.node.add(name="n", op="Const")
    node.attr["value"].tensor.variant_val.add()


def unknown_operation(model: Any) -> None:
    model.meta_graphs[0].graph_def.library.function[0].node_def.add(name="n\x1b[2J", op="Brand>New")


def library(model: Any) -> Any:
    return model.meta_graphs[0].graph_def.library


def saver_name(model: Any) -> str:
    return str(saver_function(model.meta_graphs[0], "SaveV2").signature.name)


def say(name: str) -> Callable[[Any], None]:
    """Have a function say something of itself."""

    def change(model: Any) -> None:
        library(model).function[0].attr[name].s = b"api"

    return change


def say_of_an_argument(model: Any) -> None:
    library(model).function[0].arg_attr[0].attr["_kernel"].s = b"x"


def choose_other_code(model: Any) -> None:
    model.meta_graphs[0].graph_def.node.add(name="n", op="NoOp").attr["_kernel"].s = b"x"


def function_by_parameter(model: Any) -> None:
    node = model.meta_graphs[0].graph_def.node.add(name="n", op="PartitionedCall")
    node.attr["f"].placeholder = "f"


def function_with_parameters(model: Any) -> None:
    library(model).function[0].signature.attr.add(name="f", type="func")


def two_functions_of_one_name(model: Any) -> None:
    library(model).function.add().CopyFrom(saver_function(model.meta_graphs[0], "SaveV2"))


def two_nodes_of_one_name(model: Any) -> None:
    graph = model.meta_graphs[0]
    call(graph.graph_def.node.add(name=graph.saver_def.save_tensor_name.partition(":")[0]), saver_name(model))


def saver_as_gradient(model: Any) -> None:
    library(model).registered_gradients.add(gradient_func=saver_name(model), registered_op_type="CustomGradient-1")


def saver_as_partner(model: Any) -> None:
    library(model).function[0].attr["backward_function_name"].s = saver_name(model).encode()


def partner_that_is_none(model: Any) -> None:
    library(model).function[0].attr["forward_function_name"].s = b"WriteFile"


def object_of_a_class(model: Any) -> None:
    model.meta_graphs[0].object_graph_def.nodes[0].registered_name = "a.B"


def object_with_a_saver(model: Any) -> None:
    model.meta_graphs[0].object_graph_def.nodes[0].registered_saver = "a.B"


def object_of_a_kind(model: Any) -> None:
    model.meta_graphs[0].object_graph_def.nodes[0].user_object.identifier = "optimizer"


def many_nodes(model: Any) -> None:
    node = model.meta_graphs[0].graph_def.node[0]
    model.meta_graphs[0].graph_def.node.extend([node] * MAX_NODES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (use_saver_elsewhere, "has the operation "),
        (use_saver_in_an_object, "has the operation "),
        (offer_saver_as_signature, "has the operation "),
        (save_to_own_path, "has the operation "),
        (restore_from_own_path, "has the operation RestoreV2 (node 'RestoreV2') on a path of its own"),
        (write_while_restoring, "has the operation 'SaveV2' (node 'w' in function '__inference__traced_restore"),
        (call_unknown, "calls 'WriteFile' (node 'n' in the graph), which is none of its functions"),
        (hide_in_list, "calls 'WriteFile' (node 'n' in the graph), which is none of its functions"),
        (function_like_an_operation, "has a function with the name of the operation 'WriteFile'"),
        (variant_constant, "has a constant that is no number or text (node 'n' in the graph)"),
        (unknown_operation, r"has the operation 'Brand>New' (node 'n\x1b[2J' in function "),
        (say("api_implements"), "has the attribute 'api_implements' (it of function "),
        (say("api_preferred_device"), "has the attribute 'api_preferred_device' (it of function "),
        (say("_implements"), "has the attribute '_implements' (it of function "),
        (say("_anything"), "has the attribute '_anything' (it of function "),
        (say_of_an_argument, "has the attribute '_kernel' (an argument of function "),
        (choose_other_code, "has the attribute '_kernel' (node 'n' in the graph), which may change what is run"),
        (function_by_parameter, "has a node that is another one at each call (node 'n' in the graph)"),
        (function_with_parameters, "with parameters, which is another one at each call"),
        (two_functions_of_one_name, "has 2 of the name '__inference__traced_save"),
        (two_nodes_of_one_name, "has 2 of the name 'StatefulPartitionedCall"),
        (saver_as_gradient, "has the operation "),
        (saver_as_partner, "has the operation "),
        (partner_that_is_none, "names 'WriteFile' (attribute of function "),
        (object_of_a_class, "has an object of the class 'a.B'"),
        (object_with_a_saver, "has an object of the class 'a.B'"),
        (object_of_a_kind, "has an object of the kind 'optimizer'"),
        (many_nodes, f"operations, at most {MAX_NODES} are read"),
        (lambda model: model.meta_graphs.add(), "must have one graph with its objects"),
        (lambda model: model.meta_graphs[0].ClearField("object_graph_def"), "must have one graph with its objects"),
    ],
)
def test_altered_file_is_refused(
    change: Callable[[Any], None], message: str, plain_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "saved_model.pb").write_bytes((plain_model / "saved_model.pb").read_bytes())
    change_file(tmp_path, change)

    assert message in refusal_of(tmp_path)


@pytest.fixture(scope="module")
def plain_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("plain"), lambda x: x)


def test_reader_gets_the_graph_and_the_weights_and_no_function_for_files(plain_model: Path, tmp_path: Path) -> None:
    from tensorflow.core.protobuf.config_pb2 import ConfigProto
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    def set_up(model: Any) -> None:
        node = saver_node(model.meta_graphs[0], "StatefulPartitionedCall")
        settings = ConfigProto()
        settings.graph_options.rewrite_options.custom_optimizers.add(name="x")
        node.attr["config_proto"].s = settings.SerializeToString()
        node.attr["config"].s = node.attr["executor_type"].s = b"x"

    shutil.copytree(plain_model, tmp_path / "model")
    change_file(tmp_path / "model", set_up)
    copy_for_reading(tmp_path / "model", tmp_path / "copy")

    [graph] = SavedModel.FromString((tmp_path / "copy/saved_model.pb").read_bytes()).meta_graphs
    functions = graph.graph_def.library.function
    nodes = [*graph.graph_def.node, *(node for function in functions for node in function.node_def)]
    calls = [node for node in nodes if "PartitionedCall" in node.op]
    settings = [ConfigProto.FromString(node.attr["config_proto"].s).graph_options.rewrite_options for node in calls]
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"saved_model.pb", "variables"}
    assert not {node.op for node in nodes} & (SAVING | RESTORING)
    assert {(one.implementation_selector, len(one.custom_optimizers)) for one in settings} == {(2, 0)}
    assert not any({"config", "executor_type"} & {*node.attr} for node in calls)


@pytest.mark.parametrize("name", ["saved_model.cpb", "saved_model.pbtxt"])
def test_second_graph_is_refused(name: str, plain_model: Path, tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes((plain_model / "saved_model.pb").read_bytes())
    (tmp_path / name).touch()
    assert f"has {name} beside saved_model.pb" in refusal_of(tmp_path)


def nested(depth: int) -> bytes:
    """A SavedModel whose message is nested so deep: field 2 (meta_graphs) and then function attributes, as bytes."""
    data = b""
    for _ in range(depth):
        data = bytes([0x12]) + varint(len(data)) + data
    return data


def varint(number: int) -> bytes:
    return bytes([number]) if number < 128 else bytes([number & 127 | 128]) + varint(number >> 7)


def test_file_that_is_no_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    assert "has no saved_model.pb" in refusal_of(tmp_path)
    path.write_bytes(b"graph")
    assert "cannot be parsed" in refusal_of(tmp_path)
    path.write_bytes(nested(100_000))
    assert refusal_of(tmp_path)
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert f"has a graph of {MAX_BYTES + 1} bytes" in refusal_of(tmp_path)


def test_models_of_keras_layers_pass(tmp_path: Path) -> None:
    import keras
    import tensorflow as tf
    from keras import layers

    class OwnLayer(layers.Layer):  # type: ignore[misc]
        """Functions, loops and gradients: each leaves attributes of its own."""

        def call(self, x: Any) -> Any:
            twice = tf.custom_gradient(lambda x: (2 * x, lambda upstream: 2 * upstream))
            compiled = tf.function(lambda x: x + 1, jit_compile=True)
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = tf.function(lambda x: tf.cond(tf.size(x) > 0, lambda: compiled(twice(x)), lambda: x))(x)
            return tape.gradient(y, x)

    rows = keras.Input((28, 28))
    attended = layers.Add()([layers.MultiHeadAttention(2, 4)(rows, rows), rows])
    recurrent = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(attended)
    words = OwnLayer()(layers.GlobalMaxPooling1D()(layers.GRU(3, return_sequences=True)(recurrent)))
    picture = layers.Reshape((28, 28, 1))(rows)
    steps = (
        layers.RandomFlip(),
        layers.RandomRotation(0.1),
        layers.RandomZoom(0.1),
        layers.RandomContrast(0.1),
        layers.Resizing(32, 32, interpolation="bicubic"),
        layers.CenterCrop(28, 28),
        layers.Normalization(mean=0.0, variance=1.0),
        layers.SeparableConv2D(4, 3, activation="gelu"),
        layers.BatchNormalization(),
        layers.GroupNormalization(2),
        layers.Conv2DTranspose(4, 3, activation="swish"),
        layers.MaxPooling2D(),
        layers.AveragePooling2D(2),
        layers.UpSampling2D(2),
        layers.Dropout(0.1),
        layers.GlobalAveragePooling2D(),
    )
    for step in steps:
        picture = step(picture)
    binned = layers.Flatten()(layers.Embedding(4, 2)(layers.Discretization([0.2, 0.5])(layers.Flatten()(rows))))
    together = layers.Concatenate()([words, picture, binned])
    model = keras.Model(rows, layers.Dense(10, activation="softmax")(together))
    export.save_model(model, tmp_path, image_shape=(28, 28), image_dtype=np.dtype("uint8"), input_shape=(28, 28))

    assert refusal_of(tmp_path) == ""


def test_list_names_operations_that_this_tensorflow_has() -> None:
    from tensorflow.python.framework import op_def_registry

    assert {name for name in ALLOWED | SAVING | RESTORING if op_def_registry.get(name) is None} == set()
    assert not ALLOWED & (SAVING | RESTORING)
