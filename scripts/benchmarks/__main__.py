"""Measures everything in one run and writes the figures: `scripts/bench` calls this."""

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.cases import FULL, QUICK, Mode, make_cases
from benchmarks.machine import describe_machine
from benchmarks.measure import Case, ProgramFailedError, Sample, run_case, run_rounds
from benchmarks.report import losses_agree, render, splice
from benchmarks.torch_without_cuda import make_stand_ins

SAMPLES_PATH = Path("out/benchmarks.json")


def main() -> int:
    """Measure, write, and say 1 when the programs did not compute the same."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the four MNIST IDX .gz files")
    parser.add_argument("--quick", action="store_true", help="a try-out: few rounds, few epochs")
    parser.add_argument("--out", type=Path, help="default: docs/benchmarks.md, with --quick out/...")
    flags = parser.parse_args()
    mode = QUICK if flags.quick else FULL
    out = flags.out or Path("out/benchmarks-quick.md" if flags.quick else "docs/benchmarks.md")
    machine = describe_machine()
    try:
        samples = measure(mode, data_dir=flags.data.resolve())
    except ProgramFailedError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    command = "scripts/bench --data DIR" + (" --quick" if flags.quick else "")
    splice(out, render(samples, mode=mode, machine=machine, command=command))
    print(f"bench: wrote {out}; every sample is in {SAMPLES_PATH}", file=sys.stderr)
    if not losses_agree(samples):
        print(f"bench: job, PyTorch and JAX did not compute the same losses, see {out}", file=sys.stderr)
        return 1
    return 0


def measure(mode: Mode, *, data_dir: Path) -> list[Sample]:
    """Prepare what the programs share, then run all rounds."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        prepared_path, stand_ins = Path(folder) / "prepared.npz", Path(folder) / "lib"
        stand_ins.mkdir()
        print("bench: taking the order of rows and the first weights from the job", file=sys.stderr)
        flags = ("--data", str(data_dir), "--output", str(prepared_path))
        run_case(Case(name="prepare", command=(sys.executable, "-m", "benchmarks.prepare", *flags)))
        all_cases = make_cases(
            mode, data_dir=data_dir, prepared_path=prepared_path, torch_environment=make_stand_ins(stand_ins)
        )
        return run_rounds(all_cases, rounds=mode.rounds, save_to=SAMPLES_PATH)


if __name__ == "__main__":
    sys.exit(main())
