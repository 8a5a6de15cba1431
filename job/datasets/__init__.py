"""Verified examples from anywhere, in one canonical order with one digest.

    dataset.py   what a dataset is: checks, canonical order, digests
    rows.py      rows of an array in another order, without a copy
    load.py      the configured dataset, from its source to its limits
    prepared.py  the cached plain copy
    idx.py tfds.py digits/   the sources; a new one is a module with `load`, and a line in `config.SOURCES`
    mirror.py    `data prepare`: a copy of the four files for clusters without a network

A source of your own returns `job.datasets.Dataset`.
"""

from job.datasets.dataset import Dataset

__all__ = ["Dataset"]
