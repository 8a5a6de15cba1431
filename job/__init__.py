"""The program in the container: one process is one attempt at a training run. Never imports kubernetes.

The rooms are the folders; each says in its `__init__.py` what its files are for. Beside them:

__main__.py        entry point: one way out, exit codes
attempt.py         one attempt at a run: its phases, in order. Read this first

and the ground floor, which all may use:

config.py          the one schema of all settings; settings.txt, what `run --help` prints, is made of it
config_sources.py  flags, environment, YAML; unknown names and their errors
contract.py        what the outside world relies on: exit codes, store keys, event names, environment names
errors.py          one typed error per exit code
logs.py            log events: JSON or text
events.py          each event: its level, its sentence, its fields; the schema of a line
event_text.py      the text of one event
signals.py         SIGTERM, SIGINT and SIGHUP
streams.py         stdout and stderr, which never end the process
clock.py           time, sleep and random tokens: the one seam for the simulation
records.py         JSON that others wrote: bounded and strict
digests.py         canonical JSON, and the hashes of bytes and arrays
measures.py        top-k accuracy, AUC and F1 of stored predictions
ambient.py         what libraries read from the environment: owned, recorded or refused
strict_yaml.py     YAML in which nothing is dropped, and nothing means two things
plugins.py         the user's own functions
masking.py         takes credentials out of every text that is written
texts.py           one line of any error, and tables
"""

import os
import sys
from pathlib import Path

__version__ = "0.1.0"


def leave_out_working_folder() -> None:
    """As `python -P`: take the working folder off the path, with the store that may be below it, unless PYTHONPATH names it.

    `python -m` puts it there, and so does an empty entry of PYTHONPATH, as in `PYTHONPATH=/opt/shapes:`.
    """
    try:
        folder = str(Path.cwd())
    except FileNotFoundError:
        folder = ""
    text = os.environ.get("PYTHONPATH", "")
    entries = text.split(os.pathsep) if text else []
    if folder in {os.path.normpath(Path(folder, entry)) for entry in entries if entry}:
        return
    first = len(entries) + (not sys.flags.safe_path)
    sys.path[:first] = [entry for entry in sys.path[:first] if entry not in ("", folder)]
