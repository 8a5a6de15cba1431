"""Pictures of report.html and index.html, taken by a real browser: Chromium, as Debian's package `chromium` brings it.

Usage: python -m tests.screenshots PAGE [--to=FOLDER]     desktop, phone, dark and print of a page, and whether it overflows

The page stands in a frame as wide as the screen, so that narrow ones come out right: Chromium's own window has a least width.
"""

import html
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = {"desktop": 1280, "phone": 390}
_FRAME = """<!doctype html><meta charset="utf-8"><style>body {{ margin: 0 }} iframe {{ border: 0; display: block }}</style>
<iframe src="{page}" width="{width}" height="{height}"></iframe><p id="said"></p>
<script>
onload = () => {{
  const root = document.querySelector("iframe").contentDocument.documentElement
  document.getElementById("said").textContent = `${{root.scrollWidth}}x${{root.scrollHeight}}`
  document.getElementById("said").hidden = true
}}
</script>"""
_TIMEOUT_SECONDS = 120
_MOST = 1400
"""Pixels of a picture from the top: what follows is more of the same."""


def find_browser() -> str | None:
    """The program, where this machine has one."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def size_of(page: Path, *, width: int) -> tuple[int, int]:
    """What the page takes on a screen so wide, in pixels: (width, height). Wider than the screen: it overflows."""
    dumped = _browse(page, "--dump-dom", width=width, height=1000)
    found = re.search(r'id="said"[^>]*>([0-9]+)x([0-9]+)<', dumped)
    assert found, dumped[-500:]
    return int(found[1]), int(found[2])


def take(page: Path, picture: Path, *, width: int, height: int, is_dark: bool = False) -> None:
    """Write a PNG of the page from its top on, in 256 colours at most."""
    from PIL import Image

    scheme = ["--blink-settings=preferredColorScheme=0"] if is_dark else []
    _browse(page, f"--screenshot={picture}", "--hide-scrollbars", *scheme, width=width, height=height)
    with Image.open(picture) as taken:
        seen = taken.convert("RGB").crop((0, 0, width, height)).quantize(256)
    seen.save(picture, optimize=True)


def to_pdf(page: Path, paper: Path) -> None:
    """Print the page."""
    _run(f"--print-to-pdf={paper}", "--no-pdf-header-footer", page.as_uri())


def _browse(page: Path, *flags: str, width: int, height: int) -> str:
    with tempfile.TemporaryDirectory() as folder:
        frame = Path(folder, "frame.html")
        frame.write_text(_FRAME.format(page=html.escape(page.resolve().as_uri()), width=width, height=height))
        return _run(*flags, f"--window-size={max(width, 500)},{height}", frame.as_uri())


def _run(*flags: str) -> str:
    browser = find_browser()
    assert browser
    with tempfile.TemporaryDirectory() as profile:
        always = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--allow-file-access-from-files",
            f"--user-data-dir={profile}",
        )
        done = subprocess.run(
            [browser, *always, *flags], capture_output=True, text=True, timeout=_TIMEOUT_SECONDS, check=True
        )
        return done.stdout


def main() -> None:
    """See the module."""
    pages = [Path(argument) for argument in sys.argv[1:] if not argument.startswith("--")]
    folder = Path(next((a.removeprefix("--to=") for a in sys.argv if a.startswith("--to=")), "."))
    for page in pages:
        folder.mkdir(parents=True, exist_ok=True)
        for name, width in WIDTHS.items():
            needed, height = size_of(page, width=width)
            print(f"{page} on {name}: {needed} of {width} pixels wide, {height} high")
            shown = min(height, _MOST)
            take(page, folder / f"{page.stem}-{name}.png", width=width, height=shown)
            take(page, folder / f"{page.stem}-{name}-dark.png", width=width, height=shown, is_dark=True)
        to_pdf(page.resolve(), folder / f"{page.stem}.pdf")


if __name__ == "__main__":
    main()
