"""What TensorFlow says while it is imported: its two known lines are left out, and nothing else."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

_KNOWN = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\\n",
    "I0000 00:00:1795731784.089744   16368 port.cc:153] oneDNN custom operations are on. You may see slightly different\\n",
]
_OTHER = [
    "E0000 00:00:1795731784.089744   16368 port.cc:153] oneDNN custom operations are on. You may see slightly different\\n",
    "I0000 00:00:1795731784.089744   16368 cuda.cc:1] something else\\n",
    "The TensorFlow library was compiled to use AVX instructions, but these aren't available on your machine.\\n",
    "WARNING: All log messages before\\n",
    "no line break",
]
_SAY = """
import ctypes, os
from job.training.chatter import without_chatter
libc = ctypes.CDLL(None)
def say(text):
    libc.fputs(text.encode(), ctypes.c_void_p.in_dll(libc, "stderr"))
"""


def _stderr_of(code: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-c", _SAY + code], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=300
    )
    return done.returncode, done.stderr


def test_only_the_two_known_lines_are_left_out_and_only_meanwhile() -> None:
    said = [f'say("{text}")' for text in _KNOWN + _OTHER]
    body = "\n    ".join(said)
    code, stderr = _stderr_of(f"with without_chatter():\n    {body}\n{said[0]}\n")
    assert (code, stderr) == (0, "".join([*_OTHER, _KNOWN[0]]).replace("\\n", "\n"))


@pytest.mark.parametrize("death", ["os.abort()", "os.kill(os.getpid(), 9)"])
def test_the_last_words_of_a_process_that_dies_meanwhile_are_seen(death: str) -> None:
    code, stderr = _stderr_of(f'with without_chatter():\n    say("{_OTHER[2]}")\n    {death}\n')
    assert (code < 0, stderr) == (True, _OTHER[2].replace("\\n", "\n"))


_IMPORT = """
import os
from job import ambient
from job.training.chatter import import_tensorflow
ambient.take_over(os.environ)
import_tensorflow()
import tensorflow as tf
tf.print("on purpose", output_stream=tf.compat.v1.logging.warning)
tf.print("INFO that nobody wants", output_stream=tf.compat.v1.logging.info)
"""


def test_tensorflow_is_imported_without_a_word_and_a_warning_of_its_own_is_seen() -> None:
    code, stderr = _stderr_of(_IMPORT)
    [line] = stderr.strip().splitlines()
    assert (code, line[0], line.endswith("] on purpose")) == (0, "W", True)
