"""No verb of a folder leaves it: not by a link, not by a key, not while somebody swaps folders for links."""

import contextlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from job.config import StoreSection
from job.errors import IntegrityError, JobError, NotFoundError
from job.store import folder as folders
from job.store.beneath import MAX_FOLDERS
from job.store.folder import FolderBackend
from job.store.open import open_store
from job.store.store import Store
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.security("S6")

CONTENT = b"precious"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder beside the store; `unchanged` says whether it is as it was."""
    outside = tmp_path / "outside"
    (outside / "inner").mkdir(parents=True)
    for name in ("a", "inner/b", ".tmp-1-0123456789abcdef"):
        (outside / name).write_bytes(CONTENT)
        os.utime(outside / name, (0, 0))
    return outside


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    (folder / "runs" / "real").mkdir(parents=True)
    (folder / "runs" / "real" / "a").write_bytes(b"mine")
    return folder


@pytest.fixture
def store(folder: Path) -> Store:
    return open_store(StoreSection(uri=f"file:{folder}", deadline_seconds=1), environ={})


def verbs(store: Store, key: str) -> dict[str, Callable[[], object]]:
    """Everything that can be done to a key, or below its folder."""
    return {
        "get": lambda: store.get(key),
        "create": lambda: store.create(key, b"new"),
        "put": lambda: store.put(key, b"new"),
        "delete": lambda: store.delete(key),
        "check": lambda: store.check_keys([key]),
    }


WAYS = {
    "folder, absolute": ("runs/x", "{outside}", "runs/x/a", "runs/x is a link to '/"),
    "folder, relative": ("runs/x", "../../outside", "runs/x/inner/b", "runs/x is a link to '../../outside'"),
    "folder of folders": ("models", "../outside", "models/a", "models is a link to"),
    "file, absolute": ("runs/real/f", "{outside}/a", "runs/real/f", "runs/real/f is a link to"),
    "file inside the store": ("runs/real/f", "a", "runs/real/f", "runs/real/f is a link to 'a'"),
    "to a device": ("runs/real/f", "/dev/zero", "runs/real/f", "runs/real/f is a link to '/dev/zero'"),
    "dangling file": ("runs/real/f", "{outside}/new", "runs/real/f", "runs/real/f is a link to"),
    "dangling folder": ("runs/x", "{outside}/new", "runs/x/a", "runs/x is a link to"),
    "loop": ("runs/x", "x", "runs/x/a", "runs/x is a link to 'x'"),
    "dot": ("runs/x", ".", "runs/x/real/a", "runs/x is a link to '.'"),
}
"""(where the link is, what it says, key, message)."""


@pytest.mark.parametrize("way", WAYS)
def test_no_verb_follows_a_link_and_the_message_says_what_to_do(
    way: str, store: Store, folder: Path, outside: Path
) -> None:
    where, target, key, message = WAYS[way]
    (folder / where).symlink_to(target.format(outside=outside))
    before = content_of(outside)
    for call in verbs(store, key).values():
        with pytest.raises(IntegrityError) as refused:
            call()
        assert str(refused.value).startswith(f"store file:{folder}: {message}")
        assert "mount what it leads to in its place" in str(refused.value)
    store.sweep("runs/")
    assert (folder / where).is_symlink()
    assert (content_of(outside), content_of(folder / "runs" / "real")["a"]) == (before, b"mine")
    assert [name for name in os.listdir(folder / "runs" / "real") if name.startswith(".tmp")] == []


@pytest.mark.parametrize("verb", ["list_objects", "list_folders", "sweep"])
def test_prefix_that_is_a_link_is_refused(verb: str, folder: Path, outside: Path) -> None:
    (folder / "models").symlink_to(outside)
    backend = FolderBackend(folder)
    options = {"older_than_seconds": 1.0} if verb == "sweep" else {}
    for prefix in ("models/", "models/inner/"):
        with pytest.raises(IntegrityError, match=r"models is a link to .*/outside'; a store follows no links"):
            getattr(backend, verb)(prefix, **options)


@pytest.mark.security("S5")
def test_folder_below_that_is_a_link_is_listed_as_empty_and_named_once(
    folder: Path, outside: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "models" / "evil").mkdir(parents=True)
    (folder / "models" / "evil" / "champion").symlink_to(outside)
    backend = FolderBackend(folder)
    before = content_of(outside)
    for prefix in ("models/evil/champion/", "models/evil/champion/inner/"):
        assert (backend.list_objects(prefix), backend.list_folders(prefix)) == ([], [])
        backend.sweep(prefix, older_than_seconds=1.0)
    assert content_of(outside) == before
    assert [record.__dict__["fields"]["key"] for record in caplog.records] == ["models/evil/champion"]


def test_links_are_listed_as_nothing_and_named_once(
    store: Store, folder: Path, outside: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "runs" / "x").symlink_to(outside)
    (folder / "runs" / "loop").symlink_to("loop")
    (folder / "runs" / "real" / "f").symlink_to(outside / "a")
    for _ in range(2):
        assert [entry.key for entry in store.list_objects("")] == ["runs/real/a"]
        assert store.list_folders("runs/") == ["real"]
    named = [record.__dict__["fields"]["key"] for record in caplog.records]
    assert sorted(named) == ["runs/loop", "runs/real/f", "runs/x"]
    assert "a link to '" in str(caplog.records[0].__dict__["fields"]["reason"])


def test_store_full_of_links_fills_no_log(store: Store, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in range(100):
        (folder / "runs" / f"{number}").symlink_to("real")
    assert store.list_folders("runs/") == ["real"]
    assert len(caplog.records) == 20
    assert "and so is what follows" in str(caplog.records[-1].__dict__["fields"]["reason"])


def test_store_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "named").symlink_to("store")
    store = open_store(StoreSection(uri=f"file:{tmp_path / 'named'}"), environ={})
    store.put("runs/real/b", b"more")
    assert [entry.key for entry in store.list_objects("runs/")] == ["runs/real/a", "runs/real/b"]


def make_special(path: Path, kind: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a folder":
        (path / "inner").mkdir(parents=True)
    else:
        with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a folder"])
@pytest.mark.security("S5")
def test_what_is_no_file_makes_nobody_wait_and_is_refused_by_name(
    kind: str, store: Store, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    special = folder / "runs" / "x" / "COMMIT.json"
    make_special(special, kind)
    for call in verbs(store, "runs/x/COMMIT.json").values():
        with pytest.raises(
            IntegrityError, match=f"runs/x/COMMIT.json is {kind}; the store needs a file there: move it"
        ):
            call()
    assert [entry.key for entry in store.list_objects("runs/")] == ["runs/real/a"]
    assert special.exists()
    assert os.listdir(special.parent) == ["COMMIT.json"]
    assert len(caplog.records) == (kind != "a folder")


@pytest.mark.parametrize("kind", ["a pipe", "a socket"])
def test_what_is_no_folder_holds_nothing(kind: str, store: Store, folder: Path) -> None:
    make_special(folder / "runs" / "x", kind)
    assert (store.list_objects("runs/x/"), store.list_folders("runs/x/"), store.get("runs/x/a")) == ([], [], None)
    store.delete("runs/x/a")
    with pytest.raises(NotFoundError, match=r"runs/x/a: Not a directory; a file stands where store.uri needs a folder"):
        store.put("runs/x/a", b"")


@pytest.mark.security("S5")
def test_folders_nested_without_end_are_passed_over(
    store: Store, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.chdir(folder / "runs"):
        for _ in range(1100):
            Path("d").mkdir()
            os.chdir("d")
    assert [entry.key for entry in store.list_objects("runs/")] == ["runs/real/a"]
    assert f"nested deeper than {MAX_FOLDERS}" in str(caplog.records[0].__dict__["fields"]["reason"])
    subprocess.run(["rm", "-rf", folder / "runs" / "d"], check=True)  # shutil's own recursion ends before


def test_hard_link_to_the_outside_is_replaced_and_unlinked_never_written(
    store: Store, folder: Path, outside: Path
) -> None:
    for name in ("f", "g"):
        os.link(outside / "a", folder / "runs" / "real" / name)
    store.put("runs/real/f", b"new")
    store.delete("runs/real/g")
    assert (outside / "a").read_bytes() == CONTENT
    assert store.get("runs/real/f") == b"new"


@pytest.mark.parametrize("verb", ["put", "create"])
def test_link_that_takes_the_folders_place_while_it_is_written_leads_nowhere(
    verb: str, store: Store, folder: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def swap(point: str) -> None:
        if point == "before write runs/real/b":
            (folder / "runs" / "real").rename(folder / "runs" / "moved")
            (folder / "runs" / "real").symlink_to(outside)

    monkeypatch.setattr("job.store.backend.on_point", swap)
    before = content_of(outside)
    getattr(store, verb)("runs/real/b", b"new")
    assert content_of(outside) == before
    assert content_of(folder / "runs" / "moved") == {"a": b"mine", "b": b"new"}


def test_folder_and_link_that_change_places_all_the_time_let_nobody_out(
    store: Store, folder: Path, outside: Path
) -> None:
    """The kernel exchanges both names some 100,000 times a second."""
    (folder / "runs" / "other").symlink_to(outside)
    stop = threading.Event()

    def swap() -> None:
        real, other = folder / "runs" / "real", folder / "runs" / "other"
        while not stop.is_set():
            folders.renameat2(real, other, flags=2)

    thread = threading.Thread(target=swap)
    thread.start()
    seen: list[object] = []
    try:
        for _ in range(150):
            for call in verbs(store, "runs/real/a").values():
                with contextlib.suppress(JobError):
                    seen.append(call())
            seen += [entry.num_bytes for entry in store.list_objects("")]
    finally:
        stop.set()
        thread.join()
    assert CONTENT not in seen
    assert len(CONTENT) not in seen
    assert content_of(outside)["a"] == CONTENT
    assert len(content_of(outside)) == 3


def test_two_deleters_of_the_same_objects_harm_nothing(folder: Path) -> None:
    first, second = (open_store(StoreSection(uri=f"file:{folder}"), environ={}) for _ in range(2))
    keys = [f"runs/real/{number}" for number in range(100)]
    for key in keys:
        first.put(key, b"")
    threads = [
        threading.Thread(target=lambda store=store: [store.delete(key) for key in keys]) for store in (first, second)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.key for entry in first.list_objects("")] == ["runs/real/a"]


BAD_KEYS = (
    "",
    "/etc/hostname",
    "../outside/a",
    "runs/../../outside/a",
    "runs/..",
    ".",
    "runs/./a",
    "runs//a",
    "a\0b",
    "//a",
)


@pytest.mark.security("S3")
@pytest.mark.parametrize("key", BAD_KEYS)
def test_key_that_is_no_way_below_the_store_is_refused(key: str, store: Store, folder: Path, outside: Path) -> None:
    before = content_of(outside), content_of(folder)
    for call in verbs(store, key).values():
        with pytest.raises(
            IntegrityError, match=r"^store file:\S+: the key '.*' leads out of the store, or is not spelled"
        ):
            call()
    assert (content_of(outside), content_of(folder)) == before


@pytest.mark.security("S3")
@pytest.mark.parametrize(
    "key", ["a\\..\\b", "..a", "a..", "\u2024\u2024/a", "\uff0e\uff0e/a", "a\u2215b", "~", "$HOME", "con", "a b\n"]
)
def test_odd_key_is_one_name_below_the_store(key: str, store: Store, folder: Path) -> None:
    store.put(key, b"data")
    assert store.get(key) == b"data"
    assert [entry.key for entry in store.list_objects("")] == sorted([key, "runs/real/a"])
    assert (folder / key).resolve().is_relative_to(folder)


CONTAINED = """
import sys
from job.config import StoreSection
from job.errors import IntegrityError
from job.store.open import open_store
store = open_store(StoreSection(uri=f"file:{sys.argv[1]}"), environ={})
for key in sys.argv[2:]:
    try:
        print(key, store.get(key))
    except IntegrityError:
        print("refused")
"""


@pytest.mark.security("S3")
def test_without_assertions_keys_are_contained_too(folder: Path) -> None:
    (folder / "runs" / "link").symlink_to("/etc")
    keys = ["/etc/hostname", "../../../../../../../etc/hostname", "runs/link/hostname"]
    done = subprocess.run(
        [sys.executable, "-O", "-c", CONTAINED, str(folder), *keys],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=True,
    )
    assert done.stdout.split() == ["refused"] * 3
