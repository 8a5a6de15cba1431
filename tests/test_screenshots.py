"""report.html and index.html in a real browser: nothing is wider than a phone, and they can be seen in the dark and printed."""

from pathlib import Path

import pytest

from job.commands.index import index_of
from tests import screenshots
from tests.job.commands.test_index import Nights
from tests.job.commands.test_report import _COMMIT, _METRICS, page_of

pytestmark = pytest.mark.skipif(
    screenshots.find_browser() is None, reason="no Chromium here: apt-get install --no-install-recommends chromium"
)
_PHONE = screenshots.WIDTHS["phone"]


def _index(folder: Path) -> bytes:
    nights = Nights(folder)
    for number in range(40):
        nights.commit(
            f"a-release-with-a-long-name-{number:08d}", when=1.7e9 + number * 86400, accuracy=0.97 + number / 1e4
        )
        nights.gate(
            f"a-release-with-a-long-name-{number:08d}", "refused", reason=f"accuracy {'0' * 60} below the champion"
        )
    nights.commit("x" * 250)
    nights.promote("a-release-with-a-long-name-00000003", accuracy=0.9703)
    page = index_of(nights.store, "digits")
    assert page
    return page


def _report(num_epochs: int) -> bytes:
    history = [
        {**_METRICS["history"][0], "loss": 1 / epoch, "accuracy": 1 - 1 / epoch} for epoch in range(1, num_epochs + 1)
    ]
    return page_of(_COMMIT, {**_METRICS, "history": history})


def test_no_page_is_wider_than_a_phone(tmp_path: Path) -> None:
    pages = {"index": _index(tmp_path / "store"), "one": _report(1), "many": _report(300)}
    for name, page in pages.items():
        path = tmp_path / f"{name}.html"
        path.write_bytes(page)
        needed, height = screenshots.size_of(path, width=_PHONE)
        assert needed <= _PHONE and height > 300, name


def test_pictures_in_the_dark_and_paper_can_be_made(tmp_path: Path) -> None:
    from PIL import Image

    page = tmp_path / "index.html"
    page.write_bytes(_index(tmp_path / "store"))
    corners = []
    for is_dark in (False, True):
        screenshots.take(page, tmp_path / "taken.png", width=_PHONE, height=800, is_dark=is_dark)
        with Image.open(tmp_path / "taken.png") as taken:
            assert taken.size == (_PHONE, 800)
            corners.append(taken.convert("L").tobytes()[0])
    assert corners[0] == 255 and corners[1] < 40, "the dark one is dark"
    screenshots.to_pdf(page, tmp_path / "paper.pdf")
    assert (tmp_path / "paper.pdf").read_bytes().startswith(b"%PDF")
