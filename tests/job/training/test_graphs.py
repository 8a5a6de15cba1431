"""S4: a SavedModel from the store computes and does nothing else; what could do more is refused before it is loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from job.errors import IntegrityError
from job.training import export
from job.training.graphs import MAX_BYTES, MAX_NODES, check_graphs
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
        if f"has the operation {operation!r} (node " not in said:
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
    from keras import layers

    rows = keras.Input((28, 28))
    attended = layers.Add()([layers.MultiHeadAttention(2, 4)(rows, rows), rows])
    recurrent = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(attended)
    words = layers.GlobalMaxPooling1D()(layers.GRU(3, return_sequences=True)(recurrent))
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
