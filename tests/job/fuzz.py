"""Bad records for real stores: one mutated record beside healthy ones, and the commands that read it, in this process.

The records are those of `upgrade/store.tar.xz`: of two champions, two more committed runs, and one that was stopped.
"""

import contextlib
import copy
import io
import json
import logging
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from hypothesis import strategies as st

import job.__main__
from job import contract
from job.digests import sha256_hex
from job.observe.termination import Status
from job.signals import StopSignal

BAD, HEALTHY = "old.first", "old.second"
"""The run whose record is bad, and one whose records are not touched."""
COMMIT = contract.commit_key(BAD)
OTHER = "local.digits-c73f0e26"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    output: str
    error: str


def call(*arguments: str) -> Ended:
    """Run `mnist-job` with this command line in this process: the way of `job.__main__`, without its exit."""
    bytes_of_output, error = io.BytesIO(), io.StringIO()
    output = io.TextIOWrapper(bytes_of_output, encoding="utf-8", errors="backslashreplace", write_through=True)
    with _own_logs(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            code = job.__main__._obey([*arguments], stop=StopSignal(), status=Status())
        except BaseException as raised:  # noqa: BLE001 - as the program does
            code, reason = job.__main__._describe(raised)
            print(f"mnist-job: error {int(code)}: {reason}", file=sys.stderr)
    return Ended(code=int(code), output=bytes_of_output.getvalue().decode(errors="replace"), error=error.getvalue())


@contextlib.contextmanager
def _own_logs() -> Iterator[None]:
    logger, environ, hook = logging.getLogger("job"), dict(os.environ), threading.excepthook
    before = logger.handlers, logger.propagate, logger.level
    try:
        yield
    finally:
        logger.handlers, logger.propagate, logger.level = before
        logger.setLevel(before[2])
        os.environ.clear()
        os.environ.update(environ)
        threading.excepthook = hook


def rewrite(root: Path, key: str, data: bytes) -> Callable[[], None]:
    """Replace an object, and where a COMMIT or a name proves its content, correct that too; returns what takes it back."""
    path, run = root / key, contract.run_of_key(key)
    touched = [path, *([commit] if run and (commit := root / contract.commit_key(run)).exists() else [])]
    before = {path: path.read_bytes() for path in touched}
    if checkpoint := contract.checkpoint_of_key(key):
        path.unlink()
        path = root / contract.checkpoint_key(checkpoint[0], step=checkpoint[1], content_hash=sha256_hex(data)[:16])
    path.write_bytes(data)
    if contract.attempt_of_key(key) and len(touched) > 1:
        record = json.loads(before[touched[1]])
        for file in record["files"]:
            if file["key"] == key:
                file |= {"num_bytes": len(data), "sha256": sha256_hex(data)}
        touched[1].write_text(json.dumps(record))

    def undo() -> None:
        path.unlink()
        for each, content in before.items():
            each.write_bytes(content)

    return undo


def change_head(data: bytes, change: Callable[[Any], Any]) -> bytes:
    """A safetensors file with another header: `change` is given that header as it was read."""
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.dumps(change(json.loads(data[8:end]))).encode()
    return len(head).to_bytes(8, "little") + head + data[end:]


def change_arrays(data: bytes, changes: Mapping[str, Any]) -> bytes:
    """A safetensors file with other arrays under some names."""
    arrays = safetensors.numpy.load(data) | {name: np.asarray(array) for name, array in changes.items()}
    return safetensors.numpy.save(arrays)


# Mutations: pure functions of a record's bytes, drawn by hypothesis.

_VALUES: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, -1, 2**63, 2**64, -(2**63) - 1, 1e308, -1e308, 10**400, float("nan"), float("inf"), 0.5, 1]),
    st.sampled_from(
        ["", "x", "../../x", "a/b", "\ud800", "\x00", "\x1b[31m", "x" * 5000, "1", "runs/old.second/COMMIT.json"]
    ),
    st.sampled_from([[], {}, [[]], [1, "x", None], {"a": {"b": [1]}}, [{}] * 3]),
)


_MAX_DEPTH = 8
"""Where mutations are made."""


def _paths(value: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value; of a long list the first two and the last."""
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    for name, child in items[:2] + items[-1:] if isinstance(value, list) else items:
        yield (*prefix, name)
        if len(prefix) < _MAX_DEPTH:
            yield from _paths(child, (*prefix, name))


def _nest(value: Any, *, depth: int) -> Any:
    for number in range(depth):
        value = [value] if number % 2 else {"x": value}
    return value


@st.composite
def _mutate_json(draw: st.DrawFn, content: Any) -> Any:
    """Delete, retype, nest, rename or repeat something in a JSON value; one to three times."""
    content = json.loads(json.dumps(content))
    for _ in range(draw(st.integers(1, 3))):
        paths = list(_paths(content))
        if not paths:
            break
        *way, last = draw(st.sampled_from(paths))
        at = content
        for name in way:
            at = at[name]
        match draw(st.sampled_from(["delete", "retype", "retype", "nest", "repeat", "rename"])):
            case "delete":
                del at[last]
            case "retype":
                at[last] = copy.deepcopy(draw(_VALUES))
            case "nest":
                at[last] = _nest(at[last], depth=draw(st.sampled_from([1, 2, 70, 400])))
            case "repeat":
                at[last] = [at[last]] * draw(st.sampled_from([0, 2, 300]))
            case "rename" if isinstance(at, dict):
                at[draw(st.sampled_from(["", "x", "abandoned", "format", "__class__"]))] = at.pop(last)
    return content


@st.composite
def _mutate_bytes(draw: st.DrawFn, data: bytes) -> bytes:
    """Cut, flip, insert or repeat bytes, mostly where a header would be."""
    at = draw(st.integers(0, min(len(data), draw(st.sampled_from([16, 400, 10**9])))))
    inserted, brackets = draw(st.binary(min_size=1, max_size=8)), draw(st.sampled_from([1, 1000, 100_000]))
    return draw(
        st.sampled_from(
            [
                data[:at],
                data[:at] + inserted + data[at:],
                data[:at] + inserted + data[at + len(inserted) :],
                b"[" * brackets,
                b"\0" * len(data),
                data + data,
                b"",
            ]
        )
    )


@st.composite
def _mutate_text(draw: st.DrawFn, data: bytes) -> bytes:
    """What no JSON library writes: a key twice, thousands of digits, a constant."""
    number = draw(st.sampled_from(["9" * 5000, "1e999", "NaN", "-Infinity", "0." + "1" * 5000, "true", '"\\ud800"']))
    head, _, rest = data.decode(errors="replace").partition(":")
    value = draw(
        st.sampled_from([f"{head}:{number},{head[1:]}:{rest}", f'{{"x":{number},{data.decode(errors="replace")[1:]}'])
    )
    return value.encode()


@st.composite
def mutations(draw: st.DrawFn, key: str, data: bytes) -> bytes:
    """Another content for the object under a key."""
    if key.endswith(".safetensors"):
        return draw(st.one_of(_mutate_bytes(data), _mutate_head(data)))
    if not key.endswith(".json"):
        return draw(_mutate_bytes(data))
    mutated = _mutate_json(json.loads(data)).map(lambda content: json.dumps(content).encode())
    return draw(st.one_of(mutated, mutated, _mutate_bytes(data), _mutate_text(data)))


@st.composite
def _mutate_head(draw: st.DrawFn, data: bytes) -> bytes:
    """Change the header's JSON, or the JSON in one of its texts."""
    end = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(data[8:end])
    texts = head.get("__metadata__", {})
    if texts and draw(st.booleans()):
        name = draw(st.sampled_from(sorted(texts)))
        inner = draw(_mutate_json(json.loads(texts[name])))
        return change_head(data, lambda head: head | {"__metadata__": texts | {name: json.dumps(inner)}})
    mutated = draw(_mutate_json(head))
    return change_head(data, lambda _: mutated)


def copy_store(template: Path, root: Path) -> None:
    """A store of its own for one case; everything in it is old."""
    shutil.copytree(template, root)
