"""Workers of one run as processes of this machine, for tests: each is started, told things and awaited by itself."""

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.conftest import QUICK, REPOSITORY, job_command, job_environment
from tests.ports import free_ports

Event = dict[str, Any]

FLAGS = (
    *QUICK,
    "--run.id=r",
    "--observe.log_format=json",
    "--promotion.enabled=false",
    "--cluster.peer_timeout_seconds=10",
)


def tf_config(addresses: Sequence[str], index: int) -> str:
    """As the chart sets it."""
    return json.dumps({"cluster": {"worker": list(addresses)}, "task": {"type": "worker", "index": index}})


@dataclass(slots=True, kw_only=True)
class Process:
    """One attempt of one worker."""

    index: int
    popen: "subprocess.Popen[bytes]"
    output: Path

    @property
    def events(self) -> list[Event]:
        """Its log so far."""
        lines = self.output.read_text(errors="replace").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    @property
    def stderr(self) -> str:
        """What TensorFlow and the program said there."""
        return self.output.with_suffix(".err").read_text(errors="replace")

    @property
    def error(self) -> str:
        """The one line of the program about why it ended."""
        return "\n".join(line for line in self.stderr.splitlines() if line.startswith("mnist-job:"))

    def event(self, name: str) -> Event:
        """The last event of that name."""
        return [event for event in self.events if event["event"] == name][-1]

    def until(self, name: str, *, seconds: float = 90, is_it: Callable[[Event], bool] = lambda _: True) -> Event:
        """Wait for an event."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            found = [event for event in self.events if event["event"] == name and is_it(event)]
            if found:
                return found[0]
            assert self.popen.poll() is None, f"worker {self.index} ended before {name}: {self.stderr[-2000:]}"
            time.sleep(0.02)
        raise AssertionError(f"worker {self.index}: no {name} within {seconds} s: {self.stderr[-2000:]}")

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)

    def wait(self, seconds: float = 90) -> int:
        """Its exit code; negative for a signal."""
        try:
            return self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.popen.send_signal(signal.SIGABRT)  # with the stacks on stderr
            self.popen.wait(10)
            raise AssertionError(f"worker {self.index} did not end in {seconds} s: {self.stderr[-4000:]}") from None


@dataclass(slots=True, kw_only=True)
class Cluster:
    """`count` workers of run `r` with their store below `folder`."""

    folder: Path
    count: int
    flags: Sequence[str] = ()
    addresses: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.addresses = self.addresses or [f"127.0.0.1:{port}" for port in free_ports(self.count)]

    def start(self, index: int, *more: str, prefix: Sequence[str] = (), **environ: str) -> Process:
        """Start one worker."""
        output = self.folder / f"worker-{index}-{len(self.processes)}.log"
        environment = _environment(self.folder)
        environment |= {"TF_CONFIG": tf_config(self.addresses, index), **environ}
        command = [*prefix, *job_command(["run", *FLAGS, f"--cluster.workers={self.count}", *self.flags, *more])]
        with open(output, "wb") as out, open(output.with_suffix(".err"), "wb") as err:
            popen = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=out, stderr=err)
        self.processes.append(Process(index=index, popen=popen, output=output))
        return self.processes[-1]

    def start_all(self, *more: str) -> list[Process]:
        """Start every worker."""
        return [self.start(index, *more) for index in range(self.count)]

    def end(self) -> None:
        """Kill what is left."""
        for process in self.processes:
            process.kill(signal.SIGCONT)
            process.kill()
            process.popen.wait()

    @property
    def commit(self) -> dict[str, Any]:
        """The committed result."""
        return read_commit(self.folder)


@contextlib.contextmanager
def making_clusters(tmp_path: Path, *own: str) -> Iterator[Callable[..., Cluster]]:
    """Makes clusters below a folder, all with the flags `own`; ends them."""
    made: list[Cluster] = []

    def make(count: int, *flags: str, name: str = "run", addresses: Sequence[str] = ()) -> Cluster:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        made.append(Cluster(folder=folder, count=count, flags=(*own, *flags), addresses=list(addresses)))
        return made[-1]

    yield make
    for cluster in made:
        cluster.end()


def commit_of_one_process(folder: Path, *flags: str) -> dict[str, Any]:
    """The COMMIT of an undisturbed run of one process with two replicas."""
    run_alone(folder, *flags, "--cluster.cpu_replicas=2")
    return read_commit(folder)


def run_alone(folder: Path, *flags: str) -> Process:
    """One process without other workers, to its end; the same run `r`."""
    output = folder / "alone.log"
    environment = _environment(folder)
    with open(output, "wb") as out, open(output.with_suffix(".err"), "wb") as err:
        popen = subprocess.Popen(
            job_command(["run", *FLAGS, *flags]), cwd=folder, env=environment, stdout=out, stderr=err
        )
    process = Process(index=0, popen=popen, output=output)
    assert process.wait(200) == 0, process.stderr[-2000:]
    return process


def _environment(folder: Path) -> dict[str, str]:
    """With modules of the test's own in the folder, which is the working folder."""
    return job_environment({"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": f"{REPOSITORY}:{folder}"})


def read_commit(folder: Path) -> dict[str, Any]:
    """COMMIT.json of run `r`."""
    content: dict[str, Any] = json.loads((folder / "out" / "runs" / "r" / "COMMIT.json").read_text())
    return content


def digests(commit: dict[str, Any]) -> tuple[str, str, str]:
    """What two equal runs have in common."""
    return commit["result_digest"], commit["weights_digest"], commit["state_digest"]


def checkpoint_steps(folder: Path) -> list[int]:
    """Steps of the stored checkpoints, in order."""
    return sorted(int(name.partition("-")[0]) for name in os.listdir(folder / "out" / "runs" / "r" / "checkpoints"))
