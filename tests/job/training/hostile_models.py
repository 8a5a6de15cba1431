"""SavedModels as a hostile writer of the store makes them: each looks like an export of this program, and does one thing more."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

NUM_CLASSES = 10

Change = Callable[[Any], None]
"""Alters the SavedModel's protobuf in place."""


def write_model(folder: Path, also: Callable[[Any], Any], *, change: Change | None = None, owned: Any = None) -> Path:
    """A SavedModel of one weight that takes images uint8 [N, 28, 28].

    Args:
        also: gets the images float32 [N, 784] and returns them; does the harm in the graph.
        change: is made in `saved_model.pb`.
        owned: a resource of the model, such as a table.
    """
    import tensorflow as tf

    module = tf.Module()
    module.owned = owned
    weight = tf.Variable(tf.ones((784, NUM_CLASSES)) / 784, name="kernel")
    module.weights = [weight]

    def serve(image: Any) -> dict[str, Any]:
        flat = also(tf.cast(tf.reshape(image, (-1, 784)), tf.float32) / 255)
        probabilities = tf.nn.softmax(flat @ weight)
        return {"probabilities": probabilities, "digit": tf.argmax(probabilities, 1)}

    serve = tf.function(serve, input_signature=[tf.TensorSpec((None, 28, 28), tf.uint8, name="image")])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": serve})
    if change:
        change_file(folder, change)
    return folder


def change_file(folder: Path, change: Change) -> None:
    """Rewrite `saved_model.pb`."""
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = folder / "saved_model.pb"
    model = SavedModel.FromString(path.read_bytes())
    change(model)
    path.write_bytes(model.SerializeToString())


def run_saver_in_place_of(canary: Path) -> Change:
    """A harmless function is called; TensorFlow runs the one that the saver names, which writes a file, in its place."""

    def change(model: Any) -> None:
        graph = model.meta_graphs[0]
        functions = graph.graph_def.library.function
        [serve] = [one for one in functions if one.signature.name.startswith("__inference_serve")]
        for name, device in (("__inference_good_9001", b"GPU"), ("__inference_evil_9002", b"CPU")):
            function = functions.add()
            _pass_on(function, name=name)
            function.attr["api_implements"].s, function.attr["api_preferred_device"].s = b"api", device
        _write(functions[-1], canary)
        _call(serve, "__inference_good_9001")
        [saved] = [node for node in graph.graph_def.node if f"{node.name}:0" == graph.saver_def.save_tensor_name]
        [old] = [one for one in functions if one.signature.name == saved.attr["f"].func.name]
        functions.remove(old)
        saved.attr["f"].func.name = "__inference_evil_9002"

    return change


def _pass_on(function: Any, *, name: str) -> None:
    """Make it a function of one text, which it gives back."""
    import tensorflow as tf

    function.signature.name, function.signature.is_stateful = name, True
    function.signature.input_arg.add(name="path", type=tf.string.as_datatype_enum)
    function.signature.output_arg.add(name="out", type=tf.string.as_datatype_enum)
    node = function.node_def.add(name="Identity", op="Identity", input=["path"])
    node.attr["T"].type = tf.string.as_datatype_enum
    function.ret["out"] = "Identity:output:0"


def _add_text(function: Any, name: str, text: Any) -> str:
    """A constant of a function; returns the name of its value."""
    import tensorflow as tf

    node = function.node_def.add(name=name, op="Const")
    node.attr["dtype"].type = tf.string.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(text, tf.string))
    return f"{name}:output:0"


def _write(function: Any, canary: Path) -> None:
    import tensorflow as tf

    texts = {"file": str(canary), "names": ["x"], "slices": [""], "values": ["written"]}
    inputs = [_add_text(function, name, text) for name, text in texts.items()]
    node = function.node_def.add(name="Save", op="SaveV2", input=inputs)
    node.attr["dtypes"].list.type.append(tf.string.as_datatype_enum)
    function.node_def[0].input.append("^Save")
    function.signature.control_output.append("Save")
    function.control_ret["Save"] = "Save"


def _call(function: Any, name: str) -> None:
    """Have a function call another one before it computes probabilities."""
    import tensorflow as tf

    node = function.node_def.add(name="call", op="StatefulPartitionedCall", input=[_add_text(function, "text", "a")])
    for types in (node.attr["Tin"], node.attr["Tout"]):
        types.list.type.append(tf.string.as_datatype_enum)
    node.attr["f"].func.name = name
    for softmax in function.node_def:
        if softmax.op == "Softmax":
            softmax.input.append("^call")


def hostile_graphs(canary: Path) -> dict[str, tuple[str, Callable[[Any], Any]]]:
    """Name -> a pattern of the operation that is to be named, and what the graph does beside classifying.

    It is a pattern where TensorFlow writes two such operations in an order of its own.

    Args:
        canary: a file that the graphs write, or read where it is there.
    """
    import tensorflow as tf

    path = str(canary)

    def after(*operations: Any, x: Any) -> Any:
        with tf.control_dependencies([operation for operation in operations if operation is not None]):
            return tf.identity(x)

    def in_gradient(x: Any) -> Any:
        @tf.custom_gradient  # type: ignore[untyped-decorator]
        def double(x: Any) -> tuple[Any, Any]:
            return 2 * x, lambda upstream: after(tf.io.write_file(path, "gradient"), x=2 * upstream)

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = double(x)
        return tape.gradient(y, x)

    def nested(x: Any) -> Any:
        @tf.function  # type: ignore[untyped-decorator]
        def inner(x: Any) -> Any:
            return tf.cond(tf.size(x) > 0, lambda: after(tf.io.write_file(path, "nested"), x=x), lambda: x)

        return tf.while_loop(lambda i, x: i < 1, lambda i, x: (i + 1, inner(x)), (0, x))[1]

    def read(x: Any) -> Any:
        return x + tf.cast(tf.strings.length(tf.io.read_file(path)), tf.float32)

    def read_lines(x: Any) -> Any:
        lines = tf.data.TextLineDataset(path).reduce(0, lambda count, line: count + 1)
        return x + tf.cast(lines, tf.float32)

    def restore(x: Any) -> Any:
        return x + tf.raw_ops.RestoreV2(prefix=path, tensor_names=["w"], shape_and_slices=[""], dtypes=[tf.float32])[0]

    def save(x: Any) -> Any:
        return after(tf.raw_ops.SaveV2(prefix=path, tensor_names=["x"], shape_and_slices=[""], tensors=[x]), x=x)

    def merge(x: Any) -> Any:  # deletes what it merges
        merged = tf.raw_ops.MergeV2Checkpoints(
            checkpoint_prefixes=[path], destination_prefix=path + "2", delete_old_dirs=True
        )
        return after(merged, x=x)

    return {
        "write": ("WriteFile", lambda x: after(tf.io.write_file(path, "written"), x=x)),
        "read": ("ReadFile", read),
        "find": ("MatchingFiles", lambda x: x + tf.cast(tf.size(tf.io.matching_files(path)), tf.float32)),
        "lines": ("(TensorSlice|TextLine)Dataset", read_lines),
        "restore": ("RestoreV2", restore),
        "save": ("SaveV2", save),
        "merge": ("MergeV2Checkpoints", merge),
        "python": ("EagerPyFunc", lambda x: tf.ensure_shape(tf.py_function(abs, [x], tf.float32), x.shape)),
        "numpy": ("PyFunc", lambda x: tf.ensure_shape(tf.numpy_function(abs, [x], tf.float32), x.shape)),
        "print": ("PrintV2", lambda x: after(tf.print("printed", output_stream=f"file://{path}"), x=x)),
        "dump": (
            "DebugIdentityV2",
            lambda x: tf.raw_ops.DebugIdentityV2(input=x, debug_urls=[f"file://{canary.parent}"], tensor_debug_mode=1),
        ),
        "summary": (
            "SummaryWriter",
            lambda x: after(
                tf.raw_ops.CreateSummaryFileWriter(
                    writer=tf.raw_ops.SummaryWriter(shared_name="", container=""),
                    logdir=str(canary.parent),
                    max_queue=1,
                    flush_millis=1,
                    filename_suffix="",
                ),
                x=x,
            ),
        ),
        "gradient": ("WriteFile", in_gradient),
        "nested": ("WriteFile", nested),
    }


def forever(x: Any) -> Any:
    """Never ends, and computes nothing that is not allowed."""
    import tensorflow as tf

    return tf.while_loop(lambda x: tf.reduce_sum(x) < 1e30, lambda x: x * 0.5, (x,))[0]


def huge(x: Any) -> Any:
    """Takes 3 GB, 10 MB at a time."""
    import tensorflow as tf

    def grow(step: Any, kept: Any) -> Any:
        return step + 1, kept.write(step, tf.random.uniform((2_500_000,)))

    kept = tf.TensorArray(tf.float32, size=300)
    kept = tf.while_loop(lambda step, kept: step < 300, grow, (0, kept))[1]
    return x + tf.reduce_sum([tf.reduce_sum(kept.read(step)) for step in range(300)])
