"""What a SavedModel may hold: it is looked through before TensorFlow loads it, because loading runs functions of the model.

The lists of operations and attributes are in `operations.py`. Owns the walk over the file, not the process in which a foreign
model is evaluated (`foreign.py`).
"""

import functools
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from job.errors import IntegrityError
from job.training.operations import (
    ALLOWED,
    CLASSES,
    FUNCTION_ATTRIBUTES,
    NODE_ATTRIBUTES,
    OBJECTS,
    RESTORING,
    SAVING,
)

GRAPH_FILE = "saved_model.pb"
MAX_BYTES = 2**27
"""Weights are in files of their own. What is larger holds constants that should be weights."""
MAX_NODES = 200_000
"""A large picture model has about 10,000."""

_MAX_NAME = 80
_FUNCTION_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_OTHER_GRAPHS = ("saved_model.cpb", "saved_model.pbtxt")
"""Names by which TensorFlow looks for a graph too: the one that was looked at is to be the only one."""


def check_graphs(folder: Path) -> None:
    """Look at every operation of a SavedModel, in its graph and in all of its functions. Nothing of it is run.

    Raises:
        IntegrityError: it holds an operation that does more than compute, which is named with its node; or it is no SavedModel of
            TensorFlow 2, or too large to be looked at.
    """
    _check(_read(folder))


def copy_for_reading(folder: Path, to: Path) -> None:
    """Look at a SavedModel as `check_graphs` does, and make the folder `to`, which holds what a reader of it needs.

    That is the graph and the weights. Left out are the functions that write and read the model's checkpoint, which TensorFlow
    does not need to load it, and all settings that the model makes for TensorFlow.

    Raises:
        IntegrityError: as from `check_graphs`.
    """
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    graph = _read(folder)
    _check(graph)
    _remove_savers(graph)
    for node in _all_nodes(graph):
        _reset_call(node)
    to.mkdir()
    (to / GRAPH_FILE).write_bytes(SavedModel(saved_model_schema_version=1, meta_graphs=[graph]).SerializeToString())
    (to / "variables").symlink_to((folder / "variables").resolve())


def _check(graph: Any) -> None:
    functions = graph.graph_def.library.function
    _check_names([function.signature.name for function in functions], what="function")
    _check_names([node.name for node in graph.graph_def.node], what="node")
    called, for_files = frozenset(function.signature.name for function in functions), _saver_functions(graph)
    for node in graph.graph_def.node:
        _check_node(node, called=called, allowed=ALLOWED, where="the graph")
    for function in functions:
        name = function.signature.name
        for node in function.node_def:
            allowed = ALLOWED | for_files.get(name, frozenset())
            _check_node(node, called=called, allowed=allowed, where=f"function {_shown(name)}")
            _check_path(node, arguments={argument.name for argument in function.signature.input_arg})
    for function in functions:
        _check_function(function, called=called)
    for item in graph.object_graph_def.nodes:
        _check_object(item)


def _remove_savers(graph: Any) -> None:
    """Take out the functions that have more rights, and the nodes of the graph that call them."""
    definition, names = graph.graph_def, _saver_functions(graph)
    functions = [function for function in definition.library.function if function.signature.name not in names]
    nodes = [node for node in definition.node if not names.keys() & {*_functions_named_by(node)}]
    for held, kept in ((definition.library.function, functions), (definition.node, nodes)):
        copies = [type(item).FromString(item.SerializeToString()) for item in kept]
        del held[:]
        held.extend(copies)
    graph.ClearField("saver_def")


def _reset_call(node: Any) -> None:
    """A call is optimized as TensorFlow does by itself, but never by another function that says it does the same."""
    from tensorflow.core.protobuf.config_pb2 import ConfigProto
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig

    if node.op in _FUNCTION_CALLS:
        settings = ConfigProto()
        settings.graph_options.rewrite_options.implementation_selector = RewriterConfig.OFF
        node.attr["config_proto"].s = settings.SerializeToString()
        for name in ("config", "executor_type"):
            node.attr.pop(name, None)


def _read(folder: Path) -> Any:
    """The one graph of a SavedModel: a MetaGraphDef."""
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from tensorflow.core.protobuf.saved_model_pb2 import SavedModel

    path = folder / GRAPH_FILE
    if not path.is_file():
        raise _refusal(f"has no {GRAPH_FILE}")
    for name in _OTHER_GRAPHS:
        if (folder / name).exists():
            raise _refusal(f"has {name} beside {GRAPH_FILE}; remove it")
    num_bytes = path.stat().st_size
    if num_bytes > MAX_BYTES:
        raise _refusal(f"has a graph of {num_bytes} bytes, at most {MAX_BYTES} are read; make weights of its constants")
    try:
        graphs = SavedModel.FromString(path.read_bytes()).meta_graphs
    except DecodeError as error:
        raise _refusal(f"has a {GRAPH_FILE} that cannot be parsed, or is nested too deep") from error
    if len(graphs) != 1 or not graphs[0].HasField("object_graph_def"):
        raise _refusal(f"must have one graph with its objects, as TensorFlow 2 writes it, received {len(graphs)}")
    num_nodes = sum(1 for _ in _all_nodes(graphs[0]))
    if num_nodes > MAX_NODES:
        raise _refusal(f"has {num_nodes} operations, at most {MAX_NODES} are read")
    return graphs[0]


def _all_nodes(graph: Any) -> Iterator[Any]:
    """Of the graph itself, and of its functions."""
    yield from graph.graph_def.node
    for function in graph.graph_def.library.function:
        yield from function.node_def


def _check_names(names: list[str], *, what: str) -> None:
    """Of two with one name, and of a function and an operation with one name, TensorFlow would choose the one that runs."""
    from tensorflow.python.framework import op_def_registry

    for name, count in Counter(names).items():
        if count > 1:
            raise _refusal(f"has {count} of the name {_shown(name)}: a {what} has a name of its own")
        if what == "function" and op_def_registry.get(name) is not None:
            raise _refusal(f"has a function with the name of the operation {_shown(name)}")


def _check_function(function: Any, *, called: frozenset[str]) -> None:
    """What a function says of itself: TensorFlow could run another function in its place, or take it for another one."""
    where = f"function {_shown(function.signature.name)}"
    given = [("it", function.attr, FUNCTION_ATTRIBUTES)]
    given += [("an argument", one.attr, NODE_ATTRIBUTES) for one in function.arg_attr.values()]
    for whose, attributes, known in given:
        for name in sorted(attributes.keys() - known):
            raise _refusal(f"has the attribute {_shown(name)} ({whose} of {where}), which may change what is run")
    for name in _partners_of(function):
        if name not in called:
            raise _refusal(f"names {_shown(name)} (attribute of {where}), which is none of its functions")
    if function.signature.attr:
        raise _refusal(f"has {where} with parameters, which is another one at each call")


def _partners_of(function: Any) -> Iterator[str]:
    """The functions that belong to it when gradients are computed."""
    for name in ("forward_function_name", "backward_function_name"):
        if name in function.attr:
            yield function.attr[name].s.decode(errors="replace")


def _check_object(item: Any) -> None:
    """An object of the model is a plain container: TensorFlow makes no class of its own of it."""
    for name in (item.registered_name, item.registered_saver):
        if name and name not in CLASSES:
            raise _refusal(f"has an object of the class {_shown(name)}")
    if item.WhichOneof("kind") == "user_object" and item.user_object.identifier not in OBJECTS:
        raise _refusal(f"has an object of the kind {_shown(item.user_object.identifier)}")


def _check_node(node: Any, *, called: frozenset[str], allowed: frozenset[str], where: str) -> None:
    """An operation of the list or a call of the model's own function, its attributes included."""
    if node.op not in allowed and node.op not in called:
        raise _refusal(
            f"has the operation {_shown(node.op)} (node {_shown(node.name)} in {where}), which does more than compute"
        )
    for name in sorted(node.attr.keys() - _attributes_of(node.op) - NODE_ATTRIBUTES):
        raise _refusal(
            f"has the attribute {_shown(name)} (node {_shown(node.name)} in {where}), which may change what is run"
        )
    if any(value.placeholder for value in node.attr.values()):
        raise _refusal(f"has a node that is another one at each call (node {_shown(node.name)} in {where})")
    for name in _functions_named_by(node):
        if name not in called:
            raise _refusal(
                f"calls {_shown(name)} (node {_shown(node.name)} in {where}), which is none of its functions"
            )
    for tensor in _constants_of(node):
        if tensor.variant_val or tensor.resource_handle_val:
            raise _refusal(f"has a constant that is no number or text (node {_shown(node.name)} in {where})")


def _check_path(node: Any, *, arguments: set[str]) -> None:
    """What restores the weights reads the path that the reader of the model gives, and no path of the model's own."""
    if node.op in RESTORING and node.input[0] not in arguments:
        raise _refusal(f"has the operation {node.op} (node {_shown(node.name)}) on a path of its own")


@functools.cache
def _attributes_of(operation: str) -> frozenset[str]:
    """Those that belong to an operation of TensorFlow; none for a function that is called as one."""
    from tensorflow.python.framework import op_def_registry

    definition = op_def_registry.get(operation)
    return frozenset(attribute.name for attribute in definition.attr) if definition is not None else frozenset()


def _functions_named_by(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        for function in (value.func, *value.list.func):
            yield from _names_in(function)


def _names_in(function: Any) -> Iterator[str]:
    """A function's name, if it has one, and those of the functions among its own attributes."""
    if function.name:
        yield function.name
    yield from _functions_named_by(function)


def _constants_of(node: Any) -> Iterator[Any]:
    for value in node.attr.values():
        yield value.tensor
        yield from value.list.tensor


def _saver_functions(graph: Any) -> Mapping[str, frozenset[str]]:
    """The functions that write and read the checkpoint beside the graph -> operations on files that they may have.

    Each is called by the one node that the saver names, on the path that the saver is given, and by nothing else.
    """
    saver, nodes = graph.saver_def, {node.name: node for node in graph.graph_def.node}
    path = nodes.get(_node_of(saver.filename_tensor_name))
    found = {}
    for tensor, operations in ((saver.save_tensor_name, SAVING), (saver.restore_op_name, RESTORING)):
        node = nodes.get(_node_of(tensor))
        if path is None or path.op != "Placeholder" or node is None or node.op not in _FUNCTION_CALLS:
            continue
        if list(node.input[:1]) == [path.name] and node.name not in _nodes_used(graph):
            found[node.name] = (node.attr["f"].func.name, operations)
    elsewhere = _functions_used(graph, besides=set(found))
    return {function: operations for function, operations in found.values() if function not in elsewhere}


def _functions_used(graph: Any, *, besides: set[str]) -> set[str]:
    """Names of all functions that nodes, gradients, other functions and objects refer to, but for those nodes of the graph."""
    definition, objects = graph.graph_def, graph.object_graph_def
    nodes = [node for node in definition.node if node.name not in besides]
    nodes += [node for function in definition.library.function for node in function.node_def]
    used = {name for node in nodes for name in (node.op, *_functions_named_by(node))}
    used |= {gradient.gradient_func for gradient in definition.library.gradient}
    used |= {gradient.gradient_func for gradient in definition.library.registered_gradients}
    used |= {name for function in definition.library.function for name in _partners_of(function)}
    used |= set(objects.concrete_functions)
    for item in objects.nodes:
        used |= {item.bare_concrete_function.concrete_function_name, *item.function.concrete_functions}
    return used


def _nodes_used(graph: Any) -> set[str]:
    """Names of the nodes of the graph whose outputs another node or a signature takes."""
    inputs = [name for node in graph.graph_def.node for name in node.input]
    for signature in graph.signature_def.values():
        inputs += [tensor.name for tensor in (*signature.inputs.values(), *signature.outputs.values())]
    return {_node_of(name) for name in inputs}


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _shown(name: str) -> str:
    return ascii(name[:_MAX_NAME])


def _refusal(reason: str) -> IntegrityError:
    return IntegrityError(f"export: the SavedModel {reason}; it is not loaded")
