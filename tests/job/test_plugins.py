"""The user's own functions: typos found without an import, errors with the user's own lines, and what identifies their code."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import job
from job.errors import ConfigError
from job.plugins import (
    LIBRARIES,
    _is_installed,
    call_function,
    check_exists,
    describe_sources,
    digest_of_sources,
    import_function,
    user_code,
)
from job.signals import StopRequested
from tests.conftest import REPOSITORY

Write = Callable[[str, str], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a file into a folder that is on the path for one test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    yield write_file
    for name in set(sys.modules) - before:
        del sys.modules[name]


class TestTypos:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("ownmodels:small", "^model.build: ownmodels:small: ownmodels.py has no function small; it has large$"),
            ("ownmodel:large", "no module ownmodel on the path"),
            ("ownmodels.deep:large", "no module ownmodels.deep on the path"),
            ("broken:large", r"broken.py:2 cannot be read as Python"),
        ],
    )
    def test_are_found_without_running_anything(self, write: Write, name: str, message: str) -> None:
        write("ownmodels.py", "exit('imported')\ndef large(): ...\n")
        write("broken.py", "x = 1\ndef large(:\n")
        with pytest.raises(ConfigError, match=message):
            check_exists(name, field="model.build")

    @pytest.mark.parametrize(
        "text",
        [
            "def f(): ...",
            "class f: ...",
            "f = 1",
            "f: object = 1",
            "a, (f, b) = 1, (2, 3)",
            "from x import y as f",
            "import f",
            "from x import *",
            "try:\n  f = 1\nexcept E: ...",
            "def __getattr__(name): ...",
            "async def f(): ...",
            "def other(): ...\nglobals()['f'] = other",
        ],
    )
    def test_what_may_be_there_is_left_to_the_import(self, write: Write, text: str) -> None:
        write("ownmodels.py", text)
        check_exists("ownmodels:f", field="model.build")

    def test_modules_of_packages_are_found(self, write: Write) -> None:
        write("ownpackage/__init__.py", "")
        write("ownpackage/inner/__init__.py", "def f(): ...")
        write("ownpackage/module.py", "def f(): ...")
        for module in ("ownpackage.inner", "ownpackage.module"):
            check_exists(f"{module}:f", field="model.build")


@pytest.mark.security("S4")
class TestFunctionsOfOthers:
    @pytest.mark.parametrize(
        ("name", "owner"),
        [
            ("os:system", "the standard library"),
            ("subprocess:run", "the standard library"),
            ("http.server:test", "the standard library"),
            ("builtins:eval", "the standard library"),
            ("antigravity:geohash", "the standard library"),
            ("job.__main__:main", "this program"),
            ("__main__:main", "this program"),
            ("k8s.__main__:main", "this program"),
            ("numpy:load", "numpy, a library of this program"),
            ("yaml:load", "PyYAML, a library of this program"),
            ("google.protobuf.json_format:Parse", "protobuf, a library of this program"),
            ("keras.applications:MobileNet", "keras, a library of this program"),
        ],
    )
    def test_are_refused_without_an_import(self, name: str, owner: str) -> None:
        before = set(sys.modules)
        for find in (check_exists, import_function):
            with pytest.raises(
                ConfigError, match=f"^model.build: {name} must be a function of your own, .* one of {owner};"
            ):
                find(name, field="model.build")
        assert name.partition(":")[0] not in set(sys.modules) - before

    @pytest.mark.parametrize(
        ("text", "owner"),
        [
            ("from os import system as f", "the standard library"),
            ("from subprocess import getoutput as f", "the standard library"),
            ("f = eval", "the standard library"),
            ("from job.datasets import Dataset as f", "this program"),
            ("from yaml import unsafe_load as f", "PyYAML, a library of this program"),
        ],
    )
    def test_are_refused_behind_a_name_of_the_users(self, write: Write, text: str, owner: str) -> None:
        write("own.py", text)
        with pytest.raises(ConfigError, match=f"own:f must be a function of your own, received one of {owner}"):
            call_function("own:f", "true", field="data.source", keywords={})

    def test_what_the_user_has_installed_or_wrapped_is_the_users(self, write: Write, tmp_path: Path) -> None:
        sys.path.insert(0, str(tmp_path / "site-packages"))  # `write` puts the path back
        write("site-packages/installed.py", "def f(): return 'installed'")
        write(
            "own.py",
            "import functools, installed\n@functools.cache\ndef f(): return 'own'\nfrom installed import f as g",
        )
        assert call_function("installed:f", field="data.source", keywords={}) == "installed"
        assert call_function("own:f", field="data.source", keywords={}) == "own"
        assert call_function("own:g", field="data.source", keywords={}) == "installed"

    def test_libraries_are_those_that_the_project_depends_on(self) -> None:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        lines = [*project["dependencies"], *extras["cpu"], *extras["client"]]
        names = {re.match(r"[\w.-]+", line)[0] for line in lines}  # type: ignore[index]
        assert names == {*LIBRARIES} - {"pip", "setuptools", "wheel", "uv"}


@pytest.mark.security("S4")
class TestWorkingFolder:
    @pytest.mark.parametrize(
        ("path", "python_path", "left"),
        [
            (["CWD", "/lib"], None, ["/lib"]),  # python -m job
            (["", "/lib"], None, ["/lib"]),  # python -c
            (["/venv/bin", "/lib"], None, ["/venv/bin", "/lib"]),  # mnist-job
            (["CWD", "/opt", "CWD", "/lib"], "/opt:", ["/opt", "/lib"]),  # an empty entry
            (["CWD", "CWD", "/lib"], ".", ["CWD", "CWD", "/lib"]),
            (["CWD", "CWD", "/lib"], "CWD", ["CWD", "CWD", "/lib"]),
            (["CWD", "/lib", "CWD"], None, ["/lib", "CWD"]),  # installed from there
        ],
    )
    def test_is_on_the_path_only_when_it_is_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: list[str], python_path: str | None, left: list[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "path", [entry.replace("CWD", str(tmp_path)) for entry in path])
        monkeypatch.delenv("PYTHONPATH", raising=False)
        if python_path is not None:
            monkeypatch.setenv("PYTHONPATH", python_path.replace("CWD", str(tmp_path)))
        job.leave_out_working_folder()
        assert sys.path == [entry.replace("CWD", str(tmp_path)) for entry in left]

    def test_message_says_how_to_have_it_searched(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "beside.py").write_text("def f(): ...")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            ConfigError, match=r"no module beside on the path; beside.py is in the working .* PYTHONPATH=\."
        ):
            check_exists("beside:f", field="model.build")


class TestErrorsOfTheUser:
    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("import absent", r"cannot be imported: ModuleNotFoundError: No module named 'absent'\n  own.py:1 in <module>"),
            ("raise ValueError('at import')", r"cannot be imported: ValueError: at import\n  own.py:1 in <module>: raise"),
            ("import sys; sys.exit(3)", "cannot be imported: SystemExit: 3\n  own.py:1"),
            ("def g(): ...", "cannot be imported: AttributeError: module 'own' has no attribute 'f'"),
            ("f = 3", "must be a function, received int"),
            ("def f(): ...", r"own:f is called as f\(1, width=2\): too many positional arguments"),
            ("def f(a): ...", r"is called as f\(1, width=2\): got an unexpected keyword argument 'width'"),
            ("def f(a, b, width): ...", "missing a required argument: 'b'"),
            ("def f(a, width):\n    return a / 0", "raised ZeroDivisionError: division by zero\n  own.py:2 in f: return a / 0$"),
            ("def f(a, width):\n    raise KeyError", r"raised KeyError: \n  own.py:2 in f: raise KeyError$"),
            ("import sys\ndef f(a, width):\n    sys.exit('enough')", "raised SystemExit: enough\n  own.py:3 in f"),
            ("def f(a, width):\n    return f(a, width)", "raised RecursionError"),
            ("def f(a, width):\n    raise KeyboardInterrupt", "raised KeyboardInterrupt"),
            ("class E(Exception):\n  def __str__(self): return 1 / 0\ndef f(a, width):\n  raise E", "raised E: .it cannot say"),
        ],
    )  # fmt: skip
    def test_end_with_64_and_their_own_lines(self, write: Write, text: str, message: str) -> None:
        write("own.py", text)
        with pytest.raises(ConfigError, match=message) as raised:
            call_function("own:f", 1, field="model.build", keywords={"width": 2})
        assert str(raised.value).startswith("model.build: own:f ")
        assert len(str(raised.value).splitlines()) <= 6

    def test_frames_of_libraries_are_left_out(self, write: Write) -> None:
        write("own.py", "import json\ndef f():\n    return json.loads('{')\n")
        with pytest.raises(ConfigError) as raised:
            call_function("own:f", field="data.source", keywords={})
        assert str(raised.value).splitlines()[1:] == ["  own.py:3 in f: return json.loads('{')"]

    def test_the_working_folder_is_put_back(self, write: Write, tmp_path: Path) -> None:
        write("own.py", f"import os\ndef f():\n    os.chdir({str(tmp_path)!r})\n")
        before = Path.cwd()
        call_function("own:f", field="data.source", keywords={})
        assert Path.cwd() == before != tmp_path

    def test_a_signal_is_no_error_of_the_user(self) -> None:
        with pytest.raises(StopRequested), user_code("own:f", field="model.build"):
            raise StopRequested("SIGTERM")

    def test_our_own_errors_and_a_full_memory_pass(self) -> None:
        for error in (ConfigError("ours"), MemoryError()):
            with pytest.raises(type(error)) as raised, user_code("own:f", field="model.build"):
                raise error
            assert raised.value is error

    def test_what_the_function_returns_comes_back(self, write: Write) -> None:
        write("own.py", "def f(a, width=1):\n    return a + width\n")
        assert call_function("own:f", 1, field="model.build", keywords={"width": 4}) == 5
        assert import_function("own:f", field="model.build")(1) == 2


class TestIdentityOfTheCode:
    def test_every_file_that_may_matter_counts(self, write: Write, tmp_path: Path) -> None:
        write("own.py", "import ownlayers, json\nfrom ownmore import x\ndef f(): ...\n")
        write("ownlayers.py", "import ownpackage.deep\n")
        write("ownmore.py", "x = 1\n")
        write("ownpackage/__init__.py", "")
        write("ownpackage/deep/thing.py", "y = 1\n")
        write("unrelated.py", "")
        files = describe_sources("own:f")["files"]
        assert sorted(files) == [
            "own.py", "ownlayers.py", "ownmore.py", "ownpackage/__init__.py", "ownpackage/deep/thing.py",
        ]  # fmt: skip
        before = digest_of_sources("own:f")
        for name in (*files, "unrelated.py"):
            path = tmp_path / name
            path.write_text(path.read_text() + "# changed\n")
            after = digest_of_sources("own:f")
            assert (after != before) == (path.name != "unrelated.py"), name
            before = after

    def test_nothing_is_imported(self, write: Write) -> None:
        write("ownpackage/__init__.py", "raise SystemExit")
        write("ownpackage/models.py", "raise SystemExit")
        assert digest_of_sources("ownpackage.models:f")

    def test_code_that_cannot_be_found_has_no_digest(self) -> None:
        assert digest_of_sources("absent_package.models:f") is None

    def test_namespace_packages_and_modules_beside_a_folder_of_their_name_count(self, write: Write) -> None:
        write("ownspace/models.py", "def f(): ...\n")
        write("owntwin.py", "import ownspace.models\n")
        write("owntwin/data.txt", "")
        assert sorted(describe_sources("ownspace.models:f")["files"]) == ["ownspace/models.py"]
        assert sorted(describe_sources("owntwin:f")["files"]) == ["ownspace/models.py", "owntwin.py"]

    def test_linked_folders_and_other_folders_on_the_path_count_and_copies_do_not(
        self, write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.syspath_prepend(str(tmp_path / "other"))
        write("other/ownfar.py", "")
        write("elsewhere/layers.py", "")
        write("ownpackage/__init__.py", "import ownfar\n")
        write("ownpackage/.ipynb_checkpoints/old.py", "")
        write("own.bak.py", "")
        (tmp_path / "ownpackage/linked").symlink_to(tmp_path / "elsewhere")
        (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "ownpackage")
        write("own.py", "import ownpackage\n")
        files = sorted(describe_sources("own:f")["files"])
        assert files == ["own.py", "ownfar.py", "ownpackage/__init__.py", "ownpackage/linked/layers.py"]

    def test_this_program_is_not_the_users_wherever_it_lies(self, write: Write) -> None:
        """Else every upgrade of the image would be another run."""
        write("own.py", "from job.datasets import Dataset\nimport numpy\ndef f(): ...\n")
        assert list(describe_sources("own:f")["files"]) == ["own.py"]

    def test_a_folder_that_begins_like_ours_is_the_users(self) -> None:
        assert _is_installed(Path(job.__file__).parent / "training")
        assert not _is_installed(Path(job.__file__).parent.parent / "jobs")
        assert not _is_installed(Path(job.__file__).parent.parent / "job_models.py")

    def test_installed_packages_beside_are_not_the_users(self) -> None:
        assert sorted(describe_sources("yaml:load")["files"])[0].startswith("yaml/")
        assert all(name.startswith("yaml/") for name in describe_sources("yaml:load")["files"])

    def test_repository_and_whether_it_is_dirty(self, write: Write, tmp_path: Path) -> None:
        path = write("own.py", "def f(): ...\n")
        assert "revision" not in describe_sources("own:f")
        for arguments in (
            ("init", "-q"),
            ("add", "own.py"),
            ("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q", "-m", "first"),
        ):
            subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True)
        clean = describe_sources("own:f")
        path.write_text("def f(): 1\n")
        dirty = describe_sources("own:f")
        assert len(clean["revision"]) == 40
        assert (clean["is_dirty"], dirty["is_dirty"]) == (False, True)
        assert clean["digest"] != dirty["digest"]
