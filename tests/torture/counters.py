"""R24: what is counted, over any mixture of kills and stops."""

import json
import os
import signal

from tests.torture import plain
from tests.torture.campaign import Campaign, Result, Trial
from tests.torture.checks import TrialFailed, check_same, objects_of_folder
from tests.torture.kills import points, reference

_NUM_STEPS = 3 * -(-plain.NUM_TRAIN // plain.BATCH)


def _signal_at_number(number: int, what: signal.Signals) -> plain.Hook:
    count = 0

    def hook(point: str) -> None:
        nonlocal count
        count += 1
        if count == number or (count > number and what == signal.SIGTERM):  # SIGTERM again and again
            os.kill(os.getpid(), what)

    return hook


def _count_once(trial: Trial) -> Result:
    random, num_points = trial.random, len(points())
    reference()
    num_kills = num_stops = num_perhaps = 0
    for _ in range(random.randint(1, 4)):
        what = random.choice((signal.SIGKILL, signal.SIGTERM))
        ended = plain.run(trial.folder, hook=_signal_at_number(random.randint(1, num_points), what))
        if ended.code not in (0, 75, -signal.SIGKILL):
            raise TrialFailed(f"{what.name}: ended with {ended.code}: {ended.error}")
        num_kills += ended.code == -signal.SIGKILL
        before, after = _steps(ended)
        num_stops += before < after < _NUM_STEPS
        num_perhaps += before < after == _NUM_STEPS  # during the last chunk, or after it
    ended = plain.run(trial.folder)
    if ended.code != 0:
        raise TrialFailed(f"the last start ended with {ended.code}: {ended.error}")
    objects = objects_of_folder(trial.folder / "store")
    check_same(objects, reference())
    counters = json.loads(objects["runs/r/COMMIT.json"])["counters"]
    expected = {"steps": _NUM_STEPS, "examples": 3 * plain.NUM_TRAIN, "epochs": 3}
    if ended.stdout.count('"event": "commit.done"'):  # else an earlier start had committed
        expected["attempts"] = sum(key.endswith("/attempt.json") for key in objects)
    if {name: counters[name] for name in expected} != expected:
        raise TrialFailed(f"counted {counters}, expected {expected}")
    if not num_stops <= counters["interruptions"] <= num_stops + num_perhaps:
        raise TrialFailed(f"counted {counters}, expected {num_stops} to {num_stops + num_perhaps} interruptions")
    return Result(note=f"{counters}", figures={"kills": float(num_kills), "stops": float(num_stops)})


def _steps(ended: plain.Ended) -> tuple[int, int]:
    """Where an attempt that was asked to stop had begun, and where it stood; equal for any other attempt."""
    events = [json.loads(line) for line in ended.stdout.splitlines() if line.endswith("}")]
    restored = [int(event["step"]) for event in events if event["event"] == "checkpoint.restored"]
    stopped = [int(event["step"]) for event in events if event["event"] == "run.interrupted"]
    return (max(restored, default=0), stopped[-1]) if stopped else (0, 0)


CAMPAIGNS = (
    Campaign(
        name="R24",
        promise="steps, examples, epochs and interruptions are counted once over any mixture of kills and stops",
        trial=_count_once,
        num_full=300,
        num_quick=20,
    ),
)
