"""The program in the container: one process is one attempt at a training run. Never imports kubernetes."""

__version__ = "0.1.0"
