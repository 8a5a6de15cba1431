"""Who may import whom: the rooms of `job/`, and `k8s/`. A breach is named with its file and line."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_GROUND = (
    "ambient clock config config_sources contract digests errors event_text events logs masking measures plugins records signals "
    "streams strict_yaml texts uris"
)

ALLOWED: Mapping[str, str] = {
    "ground": "ground",
    "store": "store ground",
    "observe": "observe store ground",
    "datasets": "datasets store ground",
    "runs": "runs observe store ground",
    "registry": "registry runs observe store ground datasets",
    "training": "training runs datasets observe store ground",
    "attempt": "training registry runs observe store ground",
    "assist": "attempt training runs store ground",
    "commands": "commands assist attempt training registry runs datasets observe store ground",
    "__main__": "commands observe ground",
    "k8s": "k8s",
}
"""Room -> rooms that it may import. `attempt`, `assist` and `__main__` are one file each."""

_OF_JOB_IN_K8S = (
    "job",
    *(
        f"job.{name}"
        for name in ("contract", "config", "config_sources", "errors", "masking", "records", "streams", "texts")
    ),
)
_OF_DATASETS_IN_REGISTRY = {"Images", "Labels"}  # types only
_HEAVY = {"tensorflow": "training", "keras": "training", "tensorflow_datasets": "datasets", "kubernetes": "k8s"}


@pytest.fixture(scope="module")
def sources() -> dict[str, Path]:
    """Module -> file, of everything that is shipped."""
    return find_sources(REPOSITORY)


def find_sources(root: Path) -> dict[str, Path]:
    paths = [path for package in ("job", "k8s") for path in (root / package).rglob("*.py")]
    return {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


def room_of(module: str) -> str:
    package, _, rest = module.partition(".")
    first = rest.partition(".")[0]
    if package == "k8s":
        return "k8s"
    return "ground" if first in ("", *_GROUND.split()) else first


def imports_of(path: Path, modules: Mapping[str, Path]) -> Iterator[tuple[int, str, str]]:
    """(line, module, name) of every import, those inside functions too; the name is empty for a whole module."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute here"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (node.lineno, whole, "") if whole in modules else (node.lineno, str(node.module), alias.name)


def breaches(root: Path) -> Iterator[str]:
    modules = find_sources(root)
    for module, path in modules.items():
        room = room_of(module)
        for line, target, name in imports_of(path, modules):
            where, package = f"{path.relative_to(root)}:{line}", target.partition(".")[0]
            if package in _HEAVY and room != _HEAVY[package]:
                yield f"{where}: {room} must not import {package}"
            if package not in ("job", "k8s"):
                continue
            if room == "k8s" and package == "job":
                is_allowed = target in _OF_JOB_IN_K8S
            else:
                is_allowed = room_of(target) in ALLOWED[room].split()
            if room == "registry" and room_of(target) == "datasets":
                is_allowed = target == "job.datasets.dataset" and name in _OF_DATASETS_IN_REGISTRY
            if not is_allowed:
                yield f"{where}: {room} must not import {target}"


def test_every_import_points_down() -> None:
    assert list(breaches(REPOSITORY)) == []


def test_every_file_is_in_a_room(sources: dict[str, Path]) -> None:
    assert {room_of(module) for module in sources} == set(ALLOWED)


@pytest.mark.parametrize(
    ("file", "line", "breach"),
    [
        ("job/store/store.py", "from job.observe.metrics import Metrics", "store must not import job.observe.metrics"),
        ("job/training/loop.py", "from job.registry import rules", "training must not import job.registry.rules"),
        ("job/registry/gate.py", "from job.datasets.load import load_dataset", "registry must not import job.datasets"),
        ("job/registry/gate.py", "from job.datasets.idx import Images", "registry must not import job.datasets.idx"),
        ("job/logs.py", "    import tensorflow as tf", "ground must not import tensorflow"),
        ("job/observe/view.py", "from job.runs.read import CommittedRun", "observe must not import job.runs.read"),
        ("job/runs/read.py", "from job import attempt", "runs must not import job.attempt"),
        ("k8s/status.py", "from job.runs.read import CommittedRun", "k8s must not import job.runs.read"),
    ],
)
def test_planted_breach_is_found_with_its_file_and_line(
    file: str, line: str, breach: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    for path in sources.values():
        copy = tmp_path / path.relative_to(REPOSITORY)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8"), "utf-8")
    planted = tmp_path / file
    before = planted.read_text("utf-8")
    text = f"def planted() -> None:\n{line}\n" if line.startswith(" ") else f"{line}\n"
    planted.write_text(before + text, "utf-8")
    [found] = breaches(tmp_path)
    assert found.startswith(f"{file}:{(before + text).count(chr(10))}: {breach}")


def test_there_is_no_circle(sources: dict[str, Path]) -> None:
    """Not even through imports inside functions."""
    graph = {
        module: {target for _, target, _ in imports_of(path, sources) if target in sources and target != module}
        for module, path in sources.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"circle: {' -> '.join(error.args[1])}")


def test_one_module_reads_clocks_sleeps_and_draws(sources: dict[str, Path]) -> None:
    """The simulation replaces `job.clock` alone: whoever goes past it is not simulated."""
    past = [
        f"{path.relative_to(REPOSITORY)}: {target}"
        for module, path in sources.items()
        for _, target, name in imports_of(path, sources)
        if module.startswith("job.")
        and module != "job.clock"
        and (target in {"time", "random", "secrets"} or "uuid4" in name)
    ]
    past += [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {node.attr}"
        for module, path in sources.items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if module.startswith("job.") and module != "job.clock" and isinstance(node, ast.Attribute)
        if node.attr in {"now", "utcnow", "today", "uuid1", "uuid4", "urandom", "default_rng"}
        and ast.unparse(node.value) != "clock"
    ]
    assert past == []


def test_architecture_shows_this_table() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text("utf-8")
    for room, allowed in ALLOWED.items():
        assert f"| `{room}` | {' '.join(f'`{each}`' for each in allowed.split())} |" in text
