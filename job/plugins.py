"""The user's own functions, named `package.module:function` in the settings: found, imported, called and identified.

An error that the user's code raises ends in a `ConfigError` with the user's own frames: no retry can help.
"""

import ast
import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import linecache
import os
import re
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from job.digests import canonical_json, sha256_hex
from job.errors import ConfigError, JobError
from job.signals import StopRequested
from job.texts import one_line

_MAX_FRAMES, _MAX_REASON, _MAX_LINE, _MAX_FILES = 5, 300, 100, 200
_GIT_SECONDS = 10.0
_NOISE = re.compile(
    r"\x1b\[[0-9;]*m|Arguments received by (?s:.*)|Exception encountered when calling [^\n]*|in user code:|^ *File \".*\n.*\n",
    re.MULTILINE,
)
"""What Keras and TensorFlow write around the reason: bold words, their own frames, and the arguments of each call."""
_NOT_THE_USERS = tuple(
    Path(folder).resolve()
    for folder in {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        str(Path(__file__).parent),
    }
)
_STANDARD_LIBRARY = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib"))
_FOLDERS_OF_PACKAGES = frozenset({"site-packages", "dist-packages"})
_PACKAGES_OF_THIS_PROGRAM = (Path(__file__).parent.resolve(), Path(__file__).parent.parent.resolve() / "k8s")
LIBRARIES = (
    *(
        "importlib_resources",
        "keras",
        "numpy",
        "obstore",
        "prometheus-client",
        "pydantic",
        "PyYAML",
        "rich",
        "safetensors",
    ),
    *("tensorflow", "tensorflow-cpu", "tensorflow-datasets", "kubernetes", "pip", "setuptools", "wheel", "uv"),
)
"""What this program depends on, and what installs it, by the names of the package index. Their functions are not the user's."""


def check_exists(name: str, *, field: str, keywords: Mapping[str, Any] | None = None) -> None:
    """Find a typo in `package.module:function` without importing anything: the import may take TensorFlow's seconds.

    Args:
        keywords: what the function is called with, where that is all.

    Raises:
        ConfigError: no such module, a syntax error in it, or no such function in it, or one that takes other arguments;
            the module is not the user's own.
    """
    module, _, function = name.partition(":")
    _check_own(module, name, field=field)
    path = _find_module(module)
    if path is None:
        raise ConfigError(f"{field}: {name}: no module {module} on the path; {_where_to_look(module)}")
    if path.suffix != ".py" or not path.exists():
        return
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise ConfigError(f"{field}: {path.name}:{error.lineno} cannot be read as Python: {error.msg}") from error
    names, functions = _defined_names(tree), [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    if names and function not in names:
        known = ", ".join(sorted({node.name for node in functions})[:10]) or "none"
        raise ConfigError(f"{field}: {name}: {path.name} has no function {function}; it has {known}")
    last = next((node for node in reversed(functions) if node.name == function), None)
    if keywords is not None and last and not last.decorator_list:
        _check_call(_signature_of(last), name, (), field=field, keywords=keywords)


def _where_to_look(module: str) -> str:
    """What to do about a module that is not found: the working folder is on the path only when somebody puts it there."""
    top = module.partition(".")[0]
    found = next((name for name in (f"{top}.py", top) if os.path.exists(name)), None)  # noqa: PTH110 - the folder may be gone
    if found is None:
        return "is its package in the image, or its folder in PYTHONPATH?"
    return f"{found} is in the working folder, which is not searched by itself; set PYTHONPATH=. to have it searched"


def _check_own(module: str, name: str, *, field: str) -> None:
    """Raises:
    ConfigError: the module is of the standard library, of this program or of a library that it depends on.
    """
    owner = _owner_of(module)
    if owner:
        raise ConfigError(
            f"{field}: {name} must be a function of your own, received one of {owner}; write a function that calls it"
        )


def _owner_of(module: str) -> str:
    """Whose a module is; empty where it is the user's, or a package that only the user has installed."""
    path = _find_module(module)
    if module == "__main__":
        return "this program"
    if path is None:  # built-in and frozen modules have no file
        return "the standard library" if module.partition(".")[0] in sys.stdlib_module_names else ""
    if any(folder in path.resolve().parents for folder in _PACKAGES_OF_THIS_PROGRAM):
        return "this program"
    if _is_of_standard_library(path.resolve()):
        return "the standard library"
    is_package = not _FOLDERS_OF_PACKAGES.isdisjoint(path.parts)
    owner = next((one for one in _libraries() if _has_file(one, path)), None) if is_package else None
    return f"{owner.metadata['Name']}, a library of this program" if owner else ""


def _is_of_standard_library(path: Path) -> bool:
    below = [path.relative_to(folder).parts for folder in _STANDARD_LIBRARY if folder in path.parents]
    return bool(below) and not any(_FOLDERS_OF_PACKAGES & set(parts) for parts in below)


@functools.cache
def _libraries() -> tuple[importlib.metadata.Distribution, ...]:
    """The installed packages of `LIBRARIES`, and what those require."""
    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [*LIBRARIES]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.distribution(name)
            required = [line for line in found[name].requires or () if "extra ==" not in line]
            waiting += re.findall(r"^[A-Za-z0-9._-]+", "\n".join(required), re.MULTILINE)
    return tuple(found.values())


def _has_file(package: importlib.metadata.Distribution, path: Path) -> bool:
    """Whether an installed package has brought a file: its RECORD has one line for each, `path,hash,size`."""
    where = os.path.relpath(path, str(package.locate_file("")))
    return f"\n{where}," in f"\n{package.read_text('RECORD') or ''}"


def _signature_of(node: ast.FunctionDef) -> inspect.Signature:
    """What a function takes, read from its source; defaults stand for themselves."""
    given, kind = node.args, inspect.Parameter
    by_position: list[tuple[str, Any]] = [(one.arg, kind.POSITIONAL_ONLY) for one in given.posonlyargs]
    by_position += [(one.arg, kind.POSITIONAL_OR_KEYWORD) for one in given.args]
    first_default = len(by_position) - len(given.defaults)
    parameters = [
        kind(name, how, default=... if position >= first_default else kind.empty)
        for position, (name, how) in enumerate(by_position)
    ]
    parameters += [kind(given.vararg.arg, kind.VAR_POSITIONAL)] if given.vararg else []
    for one, default in zip(given.kwonlyargs, given.kw_defaults, strict=True):
        parameters.append(kind(one.arg, kind.KEYWORD_ONLY, default=... if default else kind.empty))
    parameters += [kind(given.kwarg.arg, kind.VAR_KEYWORD)] if given.kwarg else []
    return inspect.Signature(parameters)


def _check_call(
    signature: inspect.Signature, name: str, args: tuple[object, ...], *, field: str, keywords: Mapping[str, Any]
) -> None:
    try:
        signature.bind(*args, **keywords)
    except TypeError as error:
        given = ", ".join([*map(repr, args), *(f"{key}={value!r}" for key, value in keywords.items())])
        raise ConfigError(f"{field}: {name} is called as {name.rpartition(':')[2]}({given}): {error}") from error


def import_function(name: str, *, field: str) -> Callable[..., Any]:
    """Import `package.module:function`.

    Raises:
        ConfigError: no such module or function, or the module raises; the function is not the user's own.
    """
    module_name, _, function_name = name.partition(":")
    _check_own(module_name, name, field=field)
    with user_code(name, field=field, doing="cannot be imported"):
        function = getattr(importlib.import_module(module_name), function_name)
        made_in = _module_of(function)
    if made_in and made_in != module_name:  # `from os import system` in a module of the user's
        _check_own(made_in, name, field=field)
    if not callable(function):
        raise ConfigError(f"{field}: {name} must be a function, received {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def _module_of(function: Any) -> str:
    """The module that a function or class was written in; empty for other objects, and where it does not say."""
    function = inspect.unwrap(function)
    is_plain = inspect.isfunction(function) or inspect.isbuiltin(function) or inspect.isclass(function)
    return str(getattr(function, "__module__", None) or "") if is_plain else ""


def call_function(name: str, /, *args: object, field: str, keywords: Mapping[str, Any]) -> Any:
    """Import and call `package.module:function`.

    Raises:
        ConfigError: it takes other arguments, or it raises.
    """
    function = import_function(name, field=field)
    with contextlib.suppress(ValueError):  # a callable that does not say what it takes
        _check_call(inspect.signature(function), name, args, field=field, keywords=keywords)
    with user_code(name, field=field):
        return function(*args, **keywords)


@contextlib.contextmanager
def user_code(name: str, *, field: str, doing: str = "raised") -> Iterator[None]:
    """Turn what the user's code raises inside this block into one error that names the user's own lines.

    The working folder is afterwards what it was: the store may be below it.

    Raises:
        ConfigError: the first line says what was raised, each other line is a frame of the user's, the innermost last.
    """
    folder = Path.cwd()
    try:
        yield
    except (JobError, MemoryError, StopRequested):
        raise
    except BaseException as error:  # SystemExit and KeyboardInterrupt too: our own signals raise StopRequested
        what = f"{doing}{':' * (doing != 'raised')} {type(error).__name__}: {_say(error)}"
        frames = [f"  {frame}" for frame in _users_frames(error)]
        raise ConfigError("\n".join([f"{field}: {name} {what}", *frames])) from error
    finally:
        os.chdir(folder)


def _say(error: BaseException) -> str:
    """What an error says, without the words of Keras and TensorFlow around it."""
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an error of the user's own class
        text = "(it cannot say what)"
    return one_line(_NOISE.sub("", text), limit=_MAX_REASON)


def _users_frames(error: BaseException) -> list[str]:
    """The user's own lines in a traceback, such as `mymodels.py:12 in small_cnn: keras.layers.Dense(n)`."""
    found = [
        (frame.filename, frame.lineno, frame.name, frame.line) for frame in traceback.extract_tb(error.__traceback__)
    ]
    # TensorFlow traces a converted copy of the user's function, and keeps the lines that it was made of.
    traced = getattr(getattr(error, "ag_error_metadata", None), "translated_stack", ())
    found += [(frame.filename, frame.lineno, frame.function_name, frame.code) for frame in traced]
    if isinstance(error, SyntaxError) and error.filename:
        found.append((error.filename, error.lineno, "", error.text))
    return _say_frames(found)


def frames_of(stack: Iterable[traceback.FrameSummary]) -> list[str]:
    """The user's own lines where an operation of TensorFlow was made, as `user_code` adds them to a message."""
    return [f"  {said}" for said in _say_frames((one.filename, one.lineno, one.name, _line_of(one)) for one in stack)]


def _line_of(frame: traceback.FrameSummary) -> str:
    return frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()


def _say_frames(found: Iterable[tuple[str, int | None, str, str | None]]) -> list[str]:
    frames = [
        f"{Path(file).name}:{number}{f' in {function}' if function else ''}: {one_line(line or '', limit=_MAX_LINE)}"
        for file, number, function, line in found
        if _is_the_users(file)
    ]
    return list(dict.fromkeys(frames))[-_MAX_FRAMES:]


def _is_the_users(file: str) -> bool:
    is_converted = Path(file).name.startswith("__autograph_generated")
    return not file.startswith("<") and not is_converted and not _is_installed(Path(file))


def digest_of_sources(name: str) -> str | None:
    """SHA-256 over the files of the user's package; None when it cannot be found."""
    return _digest_of(_digests_of_files(name))


def describe_sources(name: str) -> dict[str, Any]:
    """Where the user's function comes from: SHA-256 of each file of its package, and the state of the git repository it is in.

    A package of more than 200 files has only the SHA-256 over all of them.
    """
    path, files = _find_module(name.partition(":")[0]), _digests_of_files(name)
    few = {"files": files} if len(files) <= _MAX_FILES else {}
    return {"name": name, "digest": _digest_of(files), **few, **(_describe_git(path.parent) if path else {})}


def _digest_of(files: Mapping[str, str]) -> str | None:
    return sha256_hex(canonical_json(files)) if files else None


def _digests_of_files(name: str) -> dict[str, str]:
    return {where: sha256_hex(path.read_bytes()) for where, path in sorted(_find_sources(name).items())}


def _find_sources(name: str) -> dict[str, Path]:
    """The Python files that the function's result may depend on: name below the folder of its package -> path.

    These are the whole package, and the modules and packages that it imports, unless they are installed ones.
    """
    top = name.partition(":")[0].partition(".")[0]
    found = _files_of(top)
    waiting, seen = [*found.values()] if not _is_installed(_find_module(top)) else [], {top}
    while waiting:
        for other in _imported_names(waiting.pop()):
            if other not in seen and not _is_installed(_find_module(other)):
                more = _files_of(other)
                found |= more
                waiting += more.values()
            seen.add(other)
    return found


def _root_of(top: str) -> Path | None:
    """The folder on the path that a module or package without a dot in its name is in."""
    path = _find_module(top)
    return path.parent.parent if path and path.stem == "__init__" else path.parent if path else None


def _files_of(top: str) -> dict[str, Path]:
    """Of a module or package, by their names below its folder on the path; none when it cannot be found."""
    path, root = _find_module(top), _root_of(top)
    if path is None or root is None:
        return {}
    files = _walk(path.parent) if path.stem == "__init__" else [path]
    chosen = {file.relative_to(root): file for file in files if file.suffix in (".py", ".so") and file.is_file()}
    return {where.as_posix(): file for where, file in chosen.items() if not any(part[0] == "." for part in where.parts)}


def _walk(folder: Path) -> Iterator[Path]:
    """Every file below a folder, those of linked folders too; a folder that is linked twice is walked once."""
    seen: set[str] = set()
    for parent, folders, names in os.walk(folder, followlinks=True):
        seen.add(os.path.realpath(parent))
        folders[:] = [name for name in folders if os.path.realpath(Path(parent) / name) not in seen]
        yield from (Path(parent) / name for name in names)


def _is_installed(path: Path | None) -> bool:
    """Whether a file is not the user's, but of the standard library, an installed package, or this program."""
    if path is None:
        return True
    real = path.resolve()
    return any(real == other or other in real.parents for other in _NOT_THE_USERS)


def _imported_names(file: Path) -> list[str]:
    """The first part of every module that a file imports."""
    try:
        tree = ast.parse(file.read_bytes()) if file.suffix == ".py" else ast.Module([], [])
    except SyntaxError:
        return []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.append(node.module.partition(".")[0])
    return names


def _find_module(name: str) -> Path | None:
    """The file of a module, without importing it or the packages that it is in.

    For a package it is `__init__.py`, also where a folder without one is a package (a namespace package).
    """
    first, *rest = name.split(".")
    if first in sys.builtin_module_names:
        return None
    try:
        spec = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or ()) if spec else []
    if spec is None or not (spec.origin or folders):
        return None
    path = Path(folders[0]) / "__init__.py" if folders else Path(str(spec.origin))
    for part in rest:
        folder = path.parent
        choices = [*folder.glob(f"{part}/__init__.py"), *folder.glob(f"{part}.py"), *folder.glob(f"{part}.*.so")]
        path = next(iter(choices), folder / part / "__init__.py")
    return path if path.exists() or (path.stem == "__init__" and path.parent.is_dir()) else None


def _defined_names(tree: ast.Module) -> set[str]:
    """Names that a module binds at its top level; empty when only running it could tell."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {leaf.id for target in node.targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        elif not isinstance(node, ast.Expr):  # `if`, `try`, `for`: what they bind depends on what happens
            return set()
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    is_known = not names & {"*", "__getattr__"} and not called & {"globals", "setattr", "exec", "vars"}
    return names if is_known else set()


def _describe_git(folder: Path) -> dict[str, Any]:
    """`revision` and `is_dirty` of the repository that a folder is in; empty where there is none, or no git."""
    revision = _ask_git(folder, "rev-parse", "HEAD")
    if not revision:
        return {}
    return {"revision": revision, "is_dirty": _ask_git(folder, "status", "--porcelain", "--", ".") != ""}


def _ask_git(folder: Path, *arguments: str) -> str | None:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_GIT_SECONDS, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
