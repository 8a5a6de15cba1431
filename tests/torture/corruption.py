"""R8 and R9: corrupt checkpoints and corrupt datasets."""

import functools
import gzip
import hashlib
import json
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from safetensors.numpy import load, save

from job.config import DataSection
from job.datasets import idx
from job.datasets.load import load_dataset
from job.errors import IntegrityError
from tests.conftest import IDX_FILES, to_idx
from tests.torture import plain
from tests.torture.campaign import Campaign, Result, Trial, fast_folder
from tests.torture.checks import TrialFailed, check_same, objects_of_folder
from tests.torture.kills import kill_at_point, points, reference

_CHECKPOINTS = Path("store/runs/r/checkpoints")


@functools.cache
def _interrupted_run() -> Path:
    """A run killed with two checkpoints in its folder; copied for each trial, and left to the worker's end."""
    folder = Path(tempfile.mkdtemp(prefix="torture-interrupted-", dir=fast_folder()))
    reference()
    [point] = [name for name in points() if name.startswith("before create runs/r/checkpoints/000000012")]
    if plain.run(folder, hook=kill_at_point(point)).code != -signal.SIGKILL:
        raise TrialFailed("the run could not be killed between two checkpoints")
    return folder


def _flip_bits(random: Random, data: bytes, other: bytes) -> bytes:
    flipped = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 100))):
        flipped[random.randrange(len(flipped))] ^= 1 << random.randrange(8)
    return bytes(flipped) if flipped != data else b""


def _truncate(random: Random, data: bytes, other: bytes) -> bytes:
    return data[: random.randrange(1, len(data))]


def _empty(random: Random, data: bytes, other: bytes) -> bytes:
    return b""


def _append(random: Random, data: bytes, other: bytes) -> bytes:
    return data + random.randbytes(random.randint(1, 100))


def _zero(random: Random, data: bytes, other: bytes) -> bytes:
    start = random.randrange(len(data) - 64)
    zeroed = data[:start] + bytes(64) + data[start + 64 :]
    return zeroed if zeroed != data else b""


def _swap(random: Random, data: bytes, other: bytes) -> bytes:
    return other


def _noise(random: Random, data: bytes, other: bytes) -> bytes:
    return random.randbytes(len(data))


_MUTATIONS: tuple[Callable[[Random, bytes, bytes], bytes], ...] = (
    _flip_bits,
    _flip_bits,
    _truncate,
    _empty,
    _append,
    _zero,
    _swap,
    _noise,
)


def _older_format(data: bytes) -> bytes:
    """The same arrays in a file of format 1, which this version does not read."""
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header["__metadata__"]["checkpoint"]) | {"format": 1}
    return save(load(data), {"checkpoint": json.dumps(content)})


def _other_run(data: bytes) -> bytes:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    content = json.loads(header["__metadata__"]["checkpoint"]) | {"result_digest": "0" * 64}
    return save(load(data), {"checkpoint": json.dumps(content)})


def _spoil(path: Path, random: Random, *, other: bytes) -> str:
    """Replace a checkpoint by something that is none; returns what was done."""
    data = path.read_bytes()
    if random.random() < 0.2:  # well-formed and well-named, and still of no use
        make = random.choice((_older_format, _other_run))
        spoiled = make(data)
        path.unlink()
        name = f"{path.name[:9]}-{hashlib.sha256(spoiled).hexdigest()[:16]}.safetensors"
        (path.parent / name).write_bytes(spoiled)
        return make.__name__
    mutate = random.choice(_MUTATIONS)
    path.write_bytes(mutate(random, data, other))
    return mutate.__name__


def _corrupt_checkpoints(trial: Trial) -> Result:
    template, random = _interrupted_run(), trial.random
    shutil.copytree(template / "store", trial.folder / "store")
    older, newest = sorted((trial.folder / _CHECKPOINTS).iterdir())
    contents = (older.read_bytes(), newest.read_bytes())
    is_all_bad = random.random() < 0.3
    done = [_spoil(newest, random, other=contents[0])]
    if is_all_bad:
        done.append(_spoil(older, random, other=contents[1]))
    left = objects_of_folder(trial.folder / _CHECKPOINTS)
    ended = plain.run(trial.folder)
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    skipped = sum(event["event"] == "checkpoint.skipped" for event in events)
    if skipped != len(done):
        raise TrialFailed(f"{done}: {skipped} of {len(done)} bad checkpoints were noticed; exit code {ended.code}")
    if is_all_bad:
        if ended.code != 65 or "checkpoints is intact" not in ended.error:
            raise TrialFailed(f"{done}: all copies bad must end with 65, received {ended.code}: {ended.error}")
        if objects_of_folder(trial.folder / _CHECKPOINTS) != left:
            raise TrialFailed(f"{done}: the bad copies were touched, which may be all that is left")
    else:
        restored = [event["step"] for event in events if event["event"] == "checkpoint.restored"]
        if restored != [int(older.name[:9])]:
            raise TrialFailed(f"{done}: the older checkpoint should be used, restored {restored}; {ended.error}")
        check_same(objects_of_folder(trial.folder / "store"), reference())
    return Result(
        note=f"{' and '.join(done)}: ended with {ended.code}",
        figures={"detected": float(skipped), "all bad, 65": float(is_all_bad)},
    )


@functools.cache
def _small_dataset() -> tuple[dict[str, bytes], str]:
    """Four valid IDX files and the digest of what is in them; their checksums are pinned like MNIST's."""
    random = np.random.default_rng(0)
    files = {}
    for name, count in zip(IDX_FILES, (320, 320, 100, 100), strict=True):
        shape = (count, 28, 28) if "images" in name else (count,)
        files[name] = to_idx(random.integers(0, 256 if "images" in name else 10, shape, np.uint8))
    idx.PINNED_SHA256["mnist"] = tuple(hashlib.sha256(files[name]).hexdigest() for name in idx.FILES.values())  # type: ignore[assignment]
    return files, _digest(files)


def _digest(files: dict[str, bytes], *, dataset: str = "mnist") -> str:
    with tempfile.TemporaryDirectory(dir=fast_folder()) as temporary:
        for name, data in files.items():
            Path(temporary, name).write_bytes(data)
        config = DataSection(source="idx", uri=temporary, dataset=dataset)
        return load_dataset(config, cache_dir=Path(temporary, "cache"), open_folder=Path).digest


def _spoil_array(random: Random, name: str, data: bytes) -> tuple[str, bytes]:
    """A well-formed .gz whose content is wrong: what a checksum of the file alone would not show to be of no use."""
    body = bytearray(gzip.decompress(data))
    if "labels" in name:
        kind = random.choice(("label 10", "magic", "count", "short", "long"))
    else:
        kind = random.choice(("magic", "count", "height", "short", "long", "empty"))
    if kind == "label 10":
        body[8 + random.randrange(len(body) - 8)] = random.randint(10, 255)
    elif kind == "magic":
        body[random.randrange(4)] ^= 1 << random.randrange(8)
    elif kind == "count":
        body[4 + random.randrange(4)] ^= 1 << random.randrange(8)
    elif kind == "height":
        body[8 + random.randrange(8)] ^= 1 << random.randrange(8)
    elif kind == "short":
        del body[-random.randint(1, len(body) - 1) :]
    elif kind == "long":
        body += random.randbytes(random.randint(1, 100))
    else:
        body = bytearray()
    return kind, gzip.compress(bytes(body), mtime=0)


def _corrupt_dataset(trial: Trial) -> Result:
    intact, digest = _small_dataset()
    random, files = trial.random, dict(intact)
    name = random.choice(list(files))
    is_pinned = random.random() < 0.5
    if random.random() < 0.5:
        kind, files[name] = _spoil_array(random, name, files[name])
    else:
        mutate = random.choice(_MUTATIONS)
        kind, files[name] = mutate.__name__, mutate(random, files[name], files[random.choice(list(files))])
    if files == intact:
        return Result(note=f"{kind}: swapped with itself", figures={"harmless": 1.0})
    try:
        found = _digest(files, dataset="mnist" if is_pinned else "emnist/digits")
    except IntegrityError as error:
        return Result(note=f"{kind} in {name}: {error}"[:120], figures={"refused with 65": 1.0})
    # Without a pinned checksum the header of a .gz may change, its name and time, without any effect on the data.
    if is_pinned or found != digest:
        raise TrialFailed(f"{kind} in {name} was not noticed")
    return Result(note=f"{kind} in {name}: the data are the same", figures={"harmless": 1.0})


CAMPAIGNS = (
    Campaign(
        name="R8",
        promise="corrupt checkpoints: each one noticed, the older one used, all bad: 65 at once",
        trial=_corrupt_checkpoints,
        num_full=1200,
        num_quick=60,
    ),
    Campaign(
        name="R9",
        promise="corrupt datasets: refused with 65 before the first step",
        trial=_corrupt_dataset,
        num_full=500,
        num_quick=100,
    ),
)
