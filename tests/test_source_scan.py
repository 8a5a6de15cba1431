"""S13: no construct in the sources runs what is read, trusts whoever answers, or checks what is given by an assertion alone.

The sources are searched by their syntax trees. An exception is named below with its file and its reason; one that is no longer
needed is named too.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.security("S13")

_RUNS_WHAT_IT_READS = {
    "pickle",
    "_pickle",
    "cPickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "jsonpickle",
    "joblib",
    "runpy",
}
_REQUESTS = {"get", "head", "post", "put", "patch", "delete", "request"}
_SHELLS = {
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell",
}
_YAML = re.compile(r"yaml\.(unsafe_load|full_load|(Unsafe|Full|C)?Loader)\b")
_SERVERS = re.compile(r"(Server|bind|start_http_server)$")

ALLOWED: Mapping[tuple[str, str], str] = {
    ("job/plugins.py", "module by a name"): "model.build and the like: the user's own code, checked there",
    (
        "job/store/credentials.py",
        "http",
    ): "Google's metadata server has no https; what it says is only looked at for one header",
    ("job/datasets/load.py", "module by a name"): "one of the constants in SOURCES",
    ("job/commands/dispatch.py", "module by a name"): "one of the command line's own subcommands",
    ("job/commands/report/elements.py", "xml"): "writes only: a page and its SVG; nothing is parsed",
    ("job/training/workers.py", "all addresses"): "tries TensorFlow's own port, which listens so: docs/workers.md",
    ("tests/torture/__main__.py", "module by a name"): "one of the campaigns beside it",
    ("tests/torture/checks.py", "xml"): "parses what the S3 server that the trial has started answers",
    ("tests/e2e/test_client_faults.py", "no timeout"): "asks a proxy on this machine, which the test has started",
    ("tests/job/store/s3_faults.py", "weak hash"): "the ETag of S3's protocol, which proves nothing",
}
"""(file, rule) -> why it may."""

ASSERTIONS: Mapping[str, Mapping[str, str]] = {
    "job/streams.py": {
        "isinstance(error, UnicodeEncodeError)": "narrows a type: the codec registry calls it with no other"
    },
    "job/config.py": {
        "isinstance(annotation, type) and issubclass(annotation, Section)": "narrows a type of this program"
    },
    "job/training/own_model.py": {"config.build is not None": "narrows a type: its callers ask before"},
    "job/training/keras_workload.py": {"config.model.build is not None": "narrows a type: its caller asks before"},
    "job/training/foreign.py": {"process.stdin": "narrows a type: it is opened as a pipe"},
    "job/observe/metrics.py": {
        "labels.keys() <= self.labels.keys()": "names that the code gives, none that is read",
        "gauges.keys() <= _GAUGES.keys()": "names that the code gives, none that is read",
        "counters.keys() == _COUNTERS.keys()": "names that the code gives, none that is read",
        "status.code is not None": "narrows a type: called at the end only",
    },
    "job/observe/stored_logs.py": {"self.lock": "narrows a type: a handler of logging has one"},
    "job/observe/termination.py": {"outcome in OUTCOMES": "names that the code gives, none that is read"},
    "job/store/store.py": {"verb in VERBS and outcome in OUTCOMES": "names that the code gives, none that is read"},
    "job/observe/phases.py": {"name in PHASES": "names that the code gives, none that is read"},
    "job/datasets/idx.py": {"config.uri is not None": "narrows a type: the config has refused it"},
    "job/registry/comparison.py": {"champion.probabilities is not None": "narrows a type: its caller asks before"},
    "job/runs/checkpoint.py": {"content": "narrows a type: the shape before has refused what is none"},
    "scripts/local_workers.py": {"process.stdout and process.stderr": "narrows a type: they are opened as pipes"},
    "scripts/benchmarks/own_models.py": {"process.stdout is not None": "narrows a type: it is opened as a pipe"},
    "scripts/generators/resolution.py": {
        "smallest is not None": "narrows a type: a split of this size refuses something"
    },
    "scripts/generators/reference.py": {"text is not None": "narrows a type: every setting is described"},
}
"""File -> what is asserted -> why it needs no check that raises. Without assertions (`python -O`) nothing more is let through."""


def _name(node: ast.AST) -> str:
    return ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""


def _is(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def _has(call: ast.Call, name: str) -> bool:
    return any(keyword.arg == name for keyword in call.keywords)


def _imports(node: ast.AST) -> Iterator[str]:
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
    names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
    for name in names:
        if name.partition(".")[0] in _RUNS_WHAT_IT_READS:
            yield "pickle and its like"
        if name.partition(".")[0] == "xml":
            yield "xml"


def _runs_text(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call):
        name = _name(node.func).removeprefix("builtins.")
        if name in ("eval", "exec", "compile"):
            yield name
        if name in ("importlib.import_module", "import_module", "__import__") and not isinstance(
            node.args[0], ast.Constant
        ):
            yield "module by a name"
        if name.endswith("enable_unsafe_deserialization") or any(
            keyword.arg == "safe_mode" and not _is(keyword.value, True) for keyword in node.keywords
        ):
            yield "keras without safe mode"


def _reads_unsafely(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call):
        name = _name(node.func)
        loader = " ".join(ast.unparse(part) for part in (*node.args[1:], *(keyword.value for keyword in node.keywords)))
        if name in ("yaml.load", "yaml.load_all") and "Safe" not in loader:
            yield "yaml"
        if any(keyword.arg == "allow_pickle" and not _is(keyword.value, False) for keyword in node.keywords):
            yield "numpy with pickle"
        if name.rpartition(".")[2] in ("extractall", "unpack_archive") and not _has(node, "filter"):
            yield "archive without a filter"
        if name.endswith("tempfile.mktemp"):
            yield "mktemp"
    if isinstance(node, ast.Attribute) and _YAML.fullmatch(_name(node)):
        yield "yaml"


def _starts_shells(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call):
        is_shell = any(keyword.arg == "shell" and not _is(keyword.value, False) for keyword in node.keywords)
        if is_shell or _name(node.func) in _SHELLS:
            yield "shell"


def _trusts_anybody(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and any(
        keyword.arg in ("verify", "verify_ssl", "check_hostname") and _is(keyword.value, False)
        for keyword in node.keywords
    ):
        yield "tls without a check"
    if isinstance(node, ast.Attribute) and node.attr in ("CERT_NONE", "_create_unverified_context"):
        yield "tls without a check"
    is_off = isinstance(node, ast.Assign) and _is(node.value, False)
    if is_off and re.search(r"\.(check_hostname|verify_ssl|verify) = ", ast.unparse(node)):
        yield "tls without a check"
    if isinstance(node, ast.Attribute) and _name(node) in ("hashlib.md5", "hashlib.sha1"):
        yield "weak hash"
    if isinstance(node, ast.Call) and _name(node.func) == "hashlib.new":
        yield "weak hash"


def _waits_for_ever(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call):
        owner, _, method = _name(node.func).rpartition(".")
        asks = (owner == "requests" and method in _REQUESTS) or method in (
            "urlopen",
            "create_connection",
            "HTTPSConnection",
            "HTTPConnection",
        )
        if asks and not _has(node, "timeout"):
            yield "no timeout"


def _listens_to_all(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::"):
        yield "all addresses"
    starts = isinstance(node, ast.Call) and _SERVERS.search(_name(node.func))
    if starts and re.match(r"[\w.]+\(\(''", ast.unparse(node)):
        yield "all addresses"


def _is_plain_http(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"http://[^\s/]", node.value):
        yield "http"
    if isinstance(node, ast.JoinedStr) and re.match(r"f['\"]http://\{", ast.unparse(node)):
        yield "http"


Rule = Callable[[ast.AST], Iterator[str]]
EVERYWHERE: tuple[Rule, ...] = (_imports, _runs_text, _reads_unsafely, _starts_shells, _trusts_anybody, _waits_for_ever)
SHIPPED: tuple[Rule, ...] = (_listens_to_all, _is_plain_http)
"""Not in tests: servers of theirs are on this machine, and what they expect is asserted."""


def sources(root: Path) -> Iterator[Path]:
    """Every Python source: by its suffix, and of `scripts/` by its first line."""
    for folder in ("job", "k8s", "scripts", "tests"):
        for path in sorted((root / folder).rglob("*")):
            is_script = (
                folder == "scripts"
                and path.is_file()
                and path.read_bytes()[:40].partition(b"\n")[0].endswith(b"python3")
            )
            if path.suffix == ".py" or is_script:
                yield path


def found_in(text: str, *, file: str) -> Iterator[tuple[int, str]]:
    """(line, rule) of everything in a source that must not be there, without regard to what is allowed."""
    rules = EVERYWHERE if file.startswith("tests/") else (*EVERYWHERE, *SHIPPED)
    for node in ast.walk(ast.parse(text)):
        for rule in rules:
            for name in rule(node):
                yield getattr(node, "lineno", 0), name
        if isinstance(node, ast.Assert) and not file.startswith("tests/"):
            yield node.lineno, f"assert {ast.unparse(node.test)}"


def _is_allowed(file: str, rule: str) -> bool:
    return (file, rule) in ALLOWED or rule.removeprefix("assert ") in ASSERTIONS.get(file, {})


@pytest.fixture(scope="module")
def found() -> dict[str, list[tuple[int, str]]]:
    """File -> what is found in it."""
    by_path = {path.relative_to(REPOSITORY).as_posix(): path for path in sources(REPOSITORY)}
    return {file: [*found_in(path.read_text("utf-8"), file=file)] for file, path in by_path.items()}


def test_no_source_holds_what_none_may(found: dict[str, list[tuple[int, str]]]) -> None:
    bad = [
        f"{file}:{line}: {rule}" for file, lines in found.items() for line, rule in lines if not _is_allowed(file, rule)
    ]
    assert bad == [], "write it in another way, or name it in tests/test_source_scan.py with the reason"


def test_every_exception_is_still_needed(found: dict[str, list[tuple[int, str]]]) -> None:
    named = [*ALLOWED, *((file, f"assert {text}") for file, texts in ASSERTIONS.items() for text in texts)]
    there = {(file, rule) for file, lines in found.items() for _, rule in lines}
    assert [each for each in named if each[0] in found and each not in there] == []


PLANTED = {
    "import pickle": "pickle and its like",
    "def f():\n    from dill import loads": "pickle and its like",
    "import marshal, shelve": "pickle and its like",
    "import xml.dom.minidom": "xml",
    "eval(text)": "eval",
    "builtins.exec(text)": "exec",
    "compile(text, 'f', 'exec')": "compile",
    "importlib.import_module(record['module'])": "module by a name",
    "__import__(name)": "module by a name",
    "keras.models.load_model(path, safe_mode=False)": "keras without safe mode",
    "keras.config.enable_unsafe_deserialization()": "keras without safe mode",
    "yaml.load(text)": "yaml",
    "yaml.load(text, Loader=yaml.CLoader)": "yaml",
    "yaml.unsafe_load(text)": "yaml",
    "class Mine(yaml.FullLoader): ...": "yaml",
    "np.load(path, allow_pickle=True)": "numpy with pickle",
    "np.load(path, allow_pickle=is_ours)": "numpy with pickle",
    "tarfile.open(path).extractall(folder)": "archive without a filter",
    "shutil.unpack_archive(path)": "archive without a filter",
    "tempfile.mktemp()": "mktemp",
    "subprocess.run(line, shell=True)": "shell",
    "os.system(line)": "shell",
    "os.popen(line)": "shell",
    "requests.get(url, timeout=9, verify=False)": "tls without a check",
    "context.verify_mode = ssl.CERT_NONE": "tls without a check",
    "context.check_hostname = False": "tls without a check",
    "ssl._create_unverified_context()": "tls without a check",
    "hashlib.md5(data)": "weak hash",
    "hashlib.new('sha1', data)": "weak hash",
    "requests.post(url)": "no timeout",
    "urllib.request.urlopen(url)": "no timeout",
    "socket.create_connection((host, 1))": "no timeout",
    "host = '0.0.0.0'": "all addresses",
    "HTTPServer(('', 8080), Handler)": "all addresses",
    "url = 'http://registry/v2'": "http",
    "url = f'http://{host}/'": "http",
    "assert path.is_relative_to(root)": "assert path.is_relative_to(root)",
}


@pytest.mark.parametrize("text", PLANTED)
def test_planted_construct_is_found_with_its_line(text: str) -> None:
    found = [*found_in(f"x = 1\n{text}\n", file="job/planted.py")]
    line = 1 + len(text.splitlines())
    assert (line, PLANTED[text]) in found
    assert not any(_is_allowed("job/planted.py", rule) for _, rule in found)


@pytest.mark.parametrize(
    "text",
    [
        "re.compile('a')",
        "model.compile(optimizer=o)",
        "yaml.load(text, Loader=yaml.CSafeLoader)",
        "archive.extractall(folder, filter='data')",
        "subprocess.run(['ls'], shell=False)",
        "importlib.import_module('tensorflow')",
        "hashlib.sha256(data)",
        "text.startswith(('http://', 'https://'))",
        "requests.get(url, timeout=10)",
        "HTTPServer(('127.0.0.1', 0), Handler)",
    ],
)
def test_what_is_right_is_not_found(text: str) -> None:
    assert [*found_in(text, file="job/planted.py")] == []
