"""The order of the examples: a pure function of seed, epoch and step. Without TensorFlow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from job.training.pipeline import (
    MAX_CHUNK_BYTES,
    MAX_SLOW_STEPS_PER_CHUNK,
    MAX_STEPS_PER_CHUNK,
    Chunk,
    choose_steps_per_chunk,
    chunk_rows,
    epoch_order,
    steps_per_epoch,
)

Step = tuple[int, bytes, bytes]


def make(
    *, num_examples: int = 50, batch: int = 8, per_chunk: int = 3, seed: int = 1, start: int = 0, stop: int
) -> list[Chunk]:
    return list(
        chunk_rows(
            num_examples=num_examples,
            global_batch_size=batch,
            steps_per_chunk=per_chunk,
            seed=seed,
            start_step=start,
            stop_step=stop,
        )
    )


def steps_of(chunks: list[Chunk]) -> list[Step]:
    """One entry per real step: its number, rows and weights."""
    return [
        (chunk.start_step + index, chunk.rows[index].tobytes(), chunk.weights[index].tobytes())
        for chunk in chunks
        for index in range(chunk.num_steps)
    ]


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, int]:
    num_examples = draw(st.integers(1, 120))
    return {
        "num_examples": num_examples,
        "batch": draw(st.integers(1, num_examples)),
        "per_chunk": draw(st.integers(1, 12)),
        "seed": draw(st.integers(0, 2**32 - 1)),
    }


class TestOrder:
    @given(shape=shapes(), epochs=st.integers(1, 3), data=st.data())
    @settings(max_examples=200)
    def test_any_start_gives_the_tail_of_the_whole(
        self, shape: dict[str, int], epochs: int, data: st.DataObject
    ) -> None:
        stop = epochs * steps_per_epoch(shape["num_examples"], global_batch_size=shape["batch"])
        whole = steps_of(make(**shape, stop=stop))
        assert [step for step, _, _ in whole] == list(range(stop))
        start = data.draw(st.integers(0, stop))
        assert steps_of(make(**shape, start=start, stop=stop)) == whole[start:]
        assert steps_of(make(**shape, stop=start)) == whole[:start]

    @given(shape=shapes(), per_chunk=st.integers(1, 12))
    @settings(max_examples=100)
    def test_chunk_size_does_not_change_the_order(self, shape: dict[str, int], per_chunk: int) -> None:
        stop = 2 * steps_per_epoch(shape["num_examples"], global_batch_size=shape["batch"])
        assert steps_of(make(**shape, stop=stop)) == steps_of(make(**{**shape, "per_chunk": per_chunk}, stop=stop))

    @given(shape=shapes())
    @settings(max_examples=100)
    def test_every_example_comes_exactly_once_an_epoch(self, shape: dict[str, int]) -> None:
        steps = steps_per_epoch(shape["num_examples"], global_batch_size=shape["batch"])
        for epoch in range(2):
            chunks = make(**shape, start=epoch * steps, stop=(epoch + 1) * steps)
            seen = np.concatenate([chunk.rows[chunk.weights == 1] for chunk in chunks])
            assert sorted(seen.tolist()) == list(range(shape["num_examples"]))

    @given(shape=shapes())
    @settings(max_examples=100)
    def test_chunks_have_one_shape_and_padding_of_weight_zero(self, shape: dict[str, int]) -> None:
        steps = steps_per_epoch(shape["num_examples"], global_batch_size=shape["batch"])
        for chunk in make(**shape, stop=2 * steps):
            assert chunk.rows.shape == chunk.weights.shape == (shape["per_chunk"], shape["batch"])
            assert (str(chunk.rows.dtype), str(chunk.weights.dtype)) == ("int32", "float32")
            assert 1 <= chunk.num_steps <= shape["per_chunk"]
            assert chunk.start_step // steps == (chunk.start_step + chunk.num_steps - 1) // steps, "crosses an epoch"
            assert set(np.unique(chunk.weights)) <= {0.0, 1.0}
            assert (chunk.rows[chunk.weights == 0] == 0).all()
            assert (chunk.weights[chunk.num_steps :] == 0).all()
            assert (chunk.weights[: chunk.num_steps, 0] == 1).all(), "a real step has at least one example"

    def test_remainder_of_mnist_is_96_examples_and_is_kept(self) -> None:
        last = make(num_examples=60_000, batch=128, per_chunk=67, start=67 * 6, stop=469)[-1]
        assert last.start_step + last.num_steps == 469
        assert last.weights[last.num_steps - 1].sum() == 96
        assert last.weights[last.num_steps - 1, :96].all()

    def test_order_is_the_recorded_one(self) -> None:
        """Another order would make every resumed run another run: numpy promises PCG64's stream for ever."""
        assert epoch_order(seed=1337, epoch=0, num_examples=10).tolist() == [7, 6, 3, 5, 2, 8, 4, 9, 0, 1]
        assert epoch_order(seed=1337, epoch=1, num_examples=10).tolist() == [8, 5, 0, 7, 4, 3, 2, 6, 1, 9]

    def test_seeds_and_epochs_differ(self) -> None:
        orders = {
            epoch_order(seed=seed, epoch=epoch, num_examples=100).tobytes() for seed in range(5) for epoch in range(5)
        }
        assert len(orders) == 25

    @pytest.mark.parametrize(
        ("num_examples", "batch", "steps"), [(60_000, 128, 469), (128, 128, 1), (129, 128, 2), (1, 1, 1)]
    )
    def test_steps_per_epoch_count_the_remainder(self, num_examples: int, batch: int, steps: int) -> None:
        assert steps_per_epoch(num_examples, global_batch_size=batch) == steps


class TestStepsPerChunk:
    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            (1, 1),
            (45, 45),  # the digits: a whole epoch
            (67, 67),
            (68, 34),
            (469, 67),  # MNIST: 7 chunks without padding
            (1000, 50),
            (71, 67),  # a prime: padding rather than chunks of one step
            (13 * 71, 67),  # 13 divides it and is too small
        ],
    )
    def test_size_divides_the_epoch_where_it_can(self, steps: int, expected: int) -> None:
        assert choose_steps_per_chunk(steps, num_pixels=784, global_batch_size=128) == expected

    def test_slow_steps_come_a_few_at_a_time(self) -> None:
        few = MAX_SLOW_STEPS_PER_CHUNK
        assert choose_steps_per_chunk(469, num_pixels=784, global_batch_size=128, most_steps=few) == 7
        assert choose_steps_per_chunk(3, num_pixels=784, global_batch_size=128, most_steps=few) == 3

    @given(steps=st.integers(1, 10_000), num_pixels=st.integers(1, 200_000), batch=st.integers(1, 4096))
    def test_size_keeps_to_its_limits_and_is_never_tiny_without_need(
        self, steps: int, num_pixels: int, batch: int
    ) -> None:
        size = choose_steps_per_chunk(steps, num_pixels=num_pixels, global_batch_size=batch)
        room = MAX_CHUNK_BYTES // (4 * num_pixels * batch)
        most = max(1, min(steps, MAX_STEPS_PER_CHUNK, room))
        assert most / 2 < size <= most
        assert steps % size == 0 or size == most
