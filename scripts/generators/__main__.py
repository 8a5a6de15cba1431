"""`scripts/generate [--check]`."""

import argparse
import sys
from pathlib import Path

from generators import chart, reference, rules, version

ROOT = Path(__file__).parents[2]


def make_files(root: Path = ROOT) -> dict[Path, str]:
    """Path -> what it has to hold."""
    made = chart.make_files(root) | reference.make_files(root) | rules.make_files(root)
    made |= version.make_files(root, made=made)
    return {root / name: content for name, content in made.items()}


def main() -> int:
    """Write what is out of date, or with --check only name it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="scripts/generate", description="Make the generated files of the repository.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a file is out of date")
    is_check = parser.parse_args().check
    outdated = [
        (path, text) for path, text in make_files().items() if not path.is_file() or path.read_bytes() != text.encode()
    ]
    for path, text in outdated:
        print(f"{path.relative_to(ROOT)}: {'is out of date: run scripts/generate' if is_check else 'written'}")
        if not is_check:
            path.write_bytes(text.encode())
    return 1 if outdated and is_check else 0


if __name__ == "__main__":
    sys.exit(main())
