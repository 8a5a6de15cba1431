"""A SavedModel that another run has made, evaluated in a process of its own. Run as a module, this file is that process.

The process gets a folder and images, and gives back probabilities and the digest of the weights. It has no credentials and no
settings in its environment, a working folder of its own, and limits of time, memory and output. It ends when the process that
waits for it is told to stop, and when that one is gone.
"""

import ctypes
import json
import math
import os
import resource
import select
import signal
import site
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

import job
from job import ambient, clock
from job.contract import ExitCode
from job.datasets.dataset import Images
from job.errors import IntegrityError, JobError
from job.texts import one_line
from job.training import devices, export
from job.training.chatter import import_tensorflow
from job.training.evaluation import SMALL_BATCH_EXAMPLES, Probabilities, make_batches
from job.training.graphs import MAX_BYTES, copy_for_reading

_START_SECONDS, _SECONDS_PER_EXAMPLE = 300.0, 0.05
"""TensorFlow takes 5 seconds to start, on a busy machine a minute; the reference model takes 10 microseconds for an example."""
_GRACE_SECONDS = 60
"""The process ends by itself so long after its limit, should this one be stopped and never go on."""
_OTHER_OUTPUT_BYTES = 2**20
_MAX_REASON = 400
_DIGEST_CHARACTERS = 64
_PR_SET_PDEATHSIG = 1  # prctl(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one evaluation may take.

    Attributes:
        seconds: from its start to its answer.
        memory_bytes: of memory that the process cannot give back, TensorFlow's 300 MB included.
    """

    seconds: float
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a foreign model says.

    Attributes:
        probabilities: float32 [N, C].
        weights_digest: over the values of all weights, 64 hex characters.
    """

    probabilities: Probabilities
    weights_digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """What the process is told; the images follow on its standard input.

    Attributes:
        shape, dtype: of all images.
        parent: process that it is not to outlive.
    """

    folder: str
    shape: tuple[int, ...]
    dtype: str
    num_classes: int
    batch_examples: int
    threads: Mapping[str, int]
    limits: Mapping[str, float]
    parent: int

    @property
    def answer_bytes(self) -> int:
        return _DIGEST_CHARACTERS + self.shape[0] * self.num_classes * 4


def classify(
    folder: Path,
    images: Images,
    *,
    whose: str,
    num_classes: int,
    threads: Mapping[str, int],
    batch_examples: int = SMALL_BATCH_EXAMPLES,
    limits: Limits | None = None,
) -> Answer:
    """Classify raw images [N, ...] with a foreign SavedModel.

    Args:
        whose: the model, for messages, such as `run r7`.
        num_classes: that it must tell apart.
        threads: of TensorFlow, as from `devices.threads`: they decide the last bits.

    Raises:
        IntegrityError: the model may do more than compute, cannot be loaded and called, or took more than its limits.
        UnavailableError, AccessDeniedError: there is no temporary folder.
    """
    limits = limits or _limits(len(images))
    request = _Request(
        folder=str(folder.resolve()),
        shape=images.shape,
        dtype=images.dtype.str,
        num_classes=num_classes,
        batch_examples=batch_examples,
        threads=threads,
        limits=asdict(limits),
        parent=os.getpid(),
    )
    with (
        export.temporary_folder("foreign") as own,
        tempfile.TemporaryFile() as answer,
        tempfile.TemporaryFile() as words,
    ):
        try:
            code = _evaluate(request, images, own=own, answer=answer, words=words)
        except TimeoutError as error:
            raise _refusal(whose, f"did not answer within {limits.seconds:.0f} seconds, and was ended") from error
        if code:
            raise _refusal(whose, _why(code, answer=answer, words=words, limits=limits))
        return _parse(_read(answer, request.answer_bytes), request, whose=whose)


def _limits(num_examples: int) -> Limits:
    """What the pod's limit leaves beside this process; where there is none, half of the machine's memory."""
    limit = devices.memory_limit()
    if limit is None:
        memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    else:
        memory_bytes = limit - devices.memory_in_use().get("RssAnon", 0)
    return Limits(seconds=_START_SECONDS + _SECONDS_PER_EXAMPLE * num_examples, memory_bytes=memory_bytes)


def _evaluate(request: _Request, images: Images, *, own: Path, answer: IO[bytes], words: IO[bytes]) -> int:
    """Run the process to its end; returns its exit code, negative for a signal.

    Raises:
        TimeoutError: it took too long, and was ended.
    """
    deadline = clock.monotonic() + request.limits["seconds"]
    process = subprocess.Popen(  # noqa: S603 - this program itself; the request is no shell text
        [sys.executable, "-P", "-m", "job.training.foreign", json.dumps(asdict(request))],
        cwd=own,
        env=_environment(own),
        stdin=subprocess.PIPE,
        stdout=answer,
        stderr=words,
        bufsize=0,
        start_new_session=True,  # Ctrl-C reaches this process alone, which then ends that one
    )
    try:
        assert process.stdin
        with process.stdin:
            _send(process.stdin.fileno(), images, request.batch_examples, deadline=deadline)
        return process.wait(max(0.0, deadline - clock.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise TimeoutError from error
    finally:  # a signal to this process comes here too, as StopRequested
        process.kill()
        process.wait()


def _send(descriptor: int, images: Images, batch_examples: int, *, deadline: float) -> None:
    """Write the images to the process, which takes a batch at a time; less, when it has ended.

    Raises:
        TimeoutError: it does not take them in time.
    """
    os.set_blocking(descriptor, False)
    for batch in make_batches(images, batch_examples=batch_examples):
        rest = np.ascontiguousarray(batch).data.cast("B")
        while rest:
            _, ready, _ = select.select([], [descriptor], [], max(0.0, deadline - clock.monotonic()))
            if not ready:
                raise TimeoutError
            try:
                rest = rest[os.write(descriptor, rest) :]
            except BrokenPipeError:
                return


def _environment(own: Path) -> dict[str, str]:
    """What TensorFlow computes by, and where Python finds the packages; neither credentials nor settings nor proxies."""
    root = str(Path(job.__file__).parent.parent)
    paths = [root, *filter(os.path.isabs, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return ambient.for_computing(os.environ) | {
        "PATH": os.environ.get("PATH", os.defpath),
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONUSERBASE": site.getuserbase(),  # HOME is another one
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(own),
        "TMPDIR": str(own),
    }


def _why(code: int, *, answer: IO[bytes], words: IO[bytes], limits: Limits) -> str:
    """Why there is no answer. The words of the process may be those of the model: they are shortened, and shown as text."""
    if code == ExitCode.INTEGRITY:
        return _text(_read(answer, 4 * _MAX_REASON))
    size = os.fstat(words.fileno()).st_size
    last = _text(os.pread(words.fileno(), _MAX_REASON, max(0, size - _MAX_REASON)))
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"ended its process with {ended}; it had {limits.memory_bytes / 1e6:.0f} MB: {last}"


def _text(data: bytes) -> str:
    return one_line(data.decode(errors="replace"), limit=_MAX_REASON)


def _read(file: IO[bytes], most: int) -> bytes:
    """What the process wrote, one byte more than `most` at the most."""
    return os.pread(file.fileno(), most + 1, 0)


def _parse(data: bytes, request: _Request, *, whose: str) -> Answer:
    if len(data) != request.answer_bytes:
        raise _refusal(whose, f"gave an answer of {len(data)} bytes instead of {request.answer_bytes}")
    digest, numbers = data[:_DIGEST_CHARACTERS], data[_DIGEST_CHARACTERS:]
    probabilities = np.frombuffer(numbers, np.dtype("<f4")).reshape(request.shape[0], request.num_classes)
    return Answer(probabilities=probabilities, weights_digest=digest.decode(errors="replace"))


def _refusal(whose: str, reason: str) -> IntegrityError:
    return IntegrityError(f"the model of {whose} {reason.removeprefix('export: the SavedModel ')}")


def main() -> None:
    """The process: check the graph, load it, classify, answer. Exit code 65 with a reason, when the model cannot be used."""
    content = json.loads(sys.argv[1])
    request = _Request(**content | {"shape": tuple(content["shape"])})
    _confine(request)
    answer = os.dup(1)
    os.dup2(2, 1)  # what native code prints is no part of the answer
    try:
        _write(answer, _answer(request))
        code = ExitCode.OK
    except (JobError, MemoryError) as error:
        reason = (
            str(error) or f"needs more memory than the {request.limits['memory_bytes'] / 1e6:.0f} MB that it may take"
        )
        _write(answer, reason.encode())
        code = ExitCode.INTEGRITY
    os._exit(code)


def _confine(request: _Request) -> None:
    """What the kernel sees to, whatever the model does."""
    signal.alarm(int(request.limits["seconds"]) + _GRACE_SECONDS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != request.parent:  # it was gone before
        os._exit(ExitCode.INTERRUPTED)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit_output(request.answer_bytes + _OTHER_OUTPUT_BYTES + 2 * MAX_BYTES)  # with the copy of the graph


def _limit_output(most: int) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def _answer(request: _Request) -> bytes:
    folder = Path(request.folder)
    ambient.take_over(os.environ)
    _start_tensorflow(request)
    with devices.held_to_memory(int(request.limits["memory_bytes"])):
        copy = Path("model").resolve()  # in the working folder of this process
        copy_for_reading(folder, copy)
        _limit_output(request.answer_bytes + _OTHER_OUTPUT_BYTES)
        digest = export.weights_digest(export.weights_of_export(copy))
        found = export.predict_batches(copy, _receive(request))
    if found.shape != (request.shape[0], request.num_classes):
        raise IntegrityError(
            f"export: predictions have shape {found.shape}, recorded were {(request.shape[0], request.num_classes)}"
        )
    return digest.encode() + found.astype("<f4").tobytes()


def _start_tensorflow(request: _Request) -> None:
    """With all threads and devices that it will have: their memory does not count as the model's."""
    import_tensorflow()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(request.threads["intra_op"])
    tf.config.threading.set_inter_op_parallelism_threads(request.threads["inter_op"])
    tf.config.optimizer.set_experimental_options({"implementation_selector": False})  # no function in place of another
    for gpu in tf.config.list_physical_devices("GPU"):  # the process that waits holds the same GPU
        tf.config.experimental.set_memory_growth(gpu, True)
    tf.config.list_logical_devices()


def _receive(request: _Request) -> Iterator[Any]:
    """The images from standard input, a batch at a time."""
    num_examples, *of_one = request.shape
    for start in range(0, num_examples, request.batch_examples):
        shape = (min(request.batch_examples, num_examples - start), *of_one)
        dtype = np.dtype(request.dtype)
        data = sys.stdin.buffer.read(math.prod(shape) * dtype.itemsize)
        if len(data) != math.prod(shape) * dtype.itemsize:
            os._exit(ExitCode.INTERRUPTED)  # the process that waits is gone
        yield np.frombuffer(data, dtype).reshape(shape)


def _write(descriptor: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


if __name__ == "__main__":
    main()
