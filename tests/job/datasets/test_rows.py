"""Rows of an array in another order: the same values as a copy would have, without the copy."""

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from job.datasets.dataset import Dataset, digest_of, split_validation, to_canonical
from job.datasets.rows import Rows, as_rows
from job.digests import digest_of_arrays

NAMES = tuple("0123456789")
MEGABYTE = 1_000_000


def make_big(images: NDArray[Any]) -> Dataset:
    labels = np.arange(len(images)) % 10
    train = len(images) * 9 // 10
    return Dataset(
        train_images=images[:train],
        train_labels=labels[:train],
        test_images=images[train:],
        test_labels=labels[train:],
        class_names=NAMES,
    )


def resident_bytes() -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found.group(1)) * 1024


class TestReading:
    @given(order=st.permutations(range(7)), start=st.integers(0, 7), stop=st.integers(0, 7))
    def test_rows_are_those_of_a_copy(self, order: list[int], start: int, stop: int) -> None:
        array = np.arange(7 * 2 * 3, dtype=np.uint8).reshape(7, 2, 3)
        rows, copy = Rows(array, np.array(order)), array[order]
        np.testing.assert_array_equal(rows[start:stop], copy[start:stop])
        np.testing.assert_array_equal(rows.only(slice(start, stop)), copy[start:stop])
        np.testing.assert_array_equal(rows.only(copy[:, 0, 0] > 20)[:], copy[copy[:, 0, 0] > 20])
        np.testing.assert_array_equal(rows[np.array([[3, 1], [0, 3]])], copy[[[3, 1], [0, 3]]])
        assert b"".join(rows.each()) == copy.tobytes()
        assert (rows.shape, str(rows.dtype)) == ((7, 2, 3), "uint8")

    @pytest.mark.parametrize("layout", [np.ascontiguousarray, np.asfortranarray, lambda array: array[::-1][::-1]])
    def test_layout_in_memory_does_not_matter(self, layout: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
        array = np.arange(5 * 4 * 3, dtype=np.float32).reshape(5, 4, 3)
        assert b"".join(as_rows(layout(array)).each()) == array.tobytes()

    def test_digest_is_that_of_the_array(self) -> None:
        """Also over the borders of the blocks that are hashed one after another."""
        array = np.random.default_rng(0).integers(0, 256, (30_000, 28, 28), np.uint8)
        order = np.random.default_rng(1).permutation(len(array))
        assert digest_of_arrays([("a", Rows(array, order))]) == digest_of_arrays([("a", array[order])])  # type: ignore[list-item]
        assert digest_of_arrays([("a", array.T)]) == digest_of_arrays([("a", np.ascontiguousarray(array.T))])


class TestMemory:
    @pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
    def test_own_arrays_are_not_copied(self, dtype: type) -> None:
        """Order, digest and split of 98 MB take little beside the arrays themselves."""
        num_images = 8_000 // np.dtype(dtype).itemsize
        images: NDArray[Any] = np.random.default_rng(0).integers(0, 256, (num_images, 64, 64, 3)).astype(dtype)
        dataset = make_big(images)
        tracemalloc.start()
        try:
            canonical = to_canonical(dataset)
            digest_of(split_validation(canonical, 0.1))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert images.nbytes > 98 * MEGABYTE
        assert peak < 40 * MEGABYTE
        assert canonical.bytes_in_memory == images.nbytes

    @pytest.mark.parametrize("mode", ["r", "r+", "c"])
    def test_mapped_file_stays_in_its_file(self, mode: Any, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (8_000, 128, 128), np.uint8)
        np.save(tmp_path / "x.npy", images)
        expected = digest_of(to_canonical(make_big(images)))
        del images
        before = resident_bytes()
        dataset = to_canonical(make_big(np.load(tmp_path / "x.npy", mmap_mode=mode)))
        after_order = resident_bytes()
        assert digest_of(dataset) == expected
        if mode != "c":  # changes in memory alone would be lost with the pages
            assert dataset.bytes_in_memory == 0
            assert max(after_order, resident_bytes()) - before < 60 * MEGABYTE  # of 131
