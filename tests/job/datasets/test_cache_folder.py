"""Where prepared data is kept when there is no home: in no folder that somebody else has made."""

import os
import tempfile
from pathlib import Path

import pytest

from job.config import DataSection
from job.datasets import prepared
from job.errors import AccessDeniedError

CONFIG = DataSection(source="tfds", dataset="mnist")


@pytest.fixture
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("job.ambient.home_folder", lambda: None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"mnist-train-{os.getuid()}"


@pytest.mark.security("S6")
@pytest.mark.parametrize("kind", ["link", "open to all", "another user's"])
def test_folder_of_somebody_else_in_the_temporary_one_is_refused(kind: str, cache_dir: Path, tmp_path: Path) -> None:
    if kind == "link":
        (tmp_path / "theirs").mkdir()
        cache_dir.symlink_to("theirs")
    else:
        cache_dir.mkdir()
    if kind == "open to all":
        cache_dir.chmod(0o777)
    if kind == "another user's":
        if os.getuid():
            pytest.skip("only root gives a folder to another user")
        os.chown(cache_dir, 12345, 12345)
    with pytest.raises(
        AccessDeniedError, match=r"^data\.cache_dir: \S+ is a link, of another user, or writable for all"
    ):
        prepared.choose_cache_dir(CONFIG, environ={})
    named = CONFIG.model_copy(update={"cache_dir": cache_dir})
    assert prepared.choose_cache_dir(named, environ={}) == cache_dir


def test_own_folder_in_the_temporary_one_is_taken(cache_dir: Path) -> None:
    assert prepared.choose_cache_dir(CONFIG, environ={}) == cache_dir
    cache_dir.mkdir(mode=0o755)
    assert prepared.choose_cache_dir(CONFIG, environ={}) == cache_dir
