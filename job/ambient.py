"""What dependencies read from the environment and from files in the home folder: each is owned, recorded or refused."""

OWN_VARIABLES = frozenset({"MNIST_TEST_DATA", "MNIST_DIR"})
"""They start like settings and are none: for `scripts/test` and `scripts/kind`."""
