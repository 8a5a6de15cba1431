"""How content is written before it is hashed, and that equal arrays have one digest however they lie in memory."""

import hashlib

import ml_dtypes
import numpy as np
import pytest

from job.digests import canonical_json, digest_of_arrays, sha256_hex


class TestCanonicalJson:
    def test_form_is_fixed(self) -> None:
        assert canonical_json({"b": (1, 2.5), "a": {"d": None, "c": "ü"}}) == (
            '{"a":{"c":"ü","d":null},"b":[1,2.5]}'.encode()
        )

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
    def test_number_that_json_does_not_have_is_refused(self, value: float) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            canonical_json({"a": value})

    def test_sha256_is_that_of_the_standard(self) -> None:
        assert sha256_hex(b"abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


class TestDigestOfArrays:
    def test_it_is_over_name_type_shape_and_bytes(self) -> None:
        array = np.arange(6, dtype=np.float32).reshape(2, 3)
        expected = hashlib.sha256(b"weights <f4 (2, 3)\n" + array.tobytes() + b"then").hexdigest()
        assert digest_of_arrays([("weights", array)], then=b"then") == expected

    def test_layout_in_memory_does_not_matter(self) -> None:
        array = np.arange(12, dtype=np.int64).reshape(3, 4)
        assert digest_of_arrays([(0, array.T)]) == digest_of_arrays([(0, np.ascontiguousarray(array.T))])

    @pytest.mark.parametrize(
        "other",
        [
            [("b", np.zeros(4, np.float32))],
            [("a", np.zeros(4, np.int32))],
            [("a", np.zeros((2, 2), np.float32))],
            [("a", np.array([0, 0, 0, -0.0], np.float32))],
            [("a", np.zeros(4, np.float32))] * 2,
        ],
        ids=["name", "type", "shape", "bytes", "number"],
    )
    def test_whatever_differs_gives_another(self, other: list[tuple[str, np.ndarray]]) -> None:
        assert digest_of_arrays(other) != digest_of_arrays([("a", np.zeros(4, np.float32))])

    def test_types_that_numpy_does_not_know_are_taken(self) -> None:
        assert len(digest_of_arrays([("a", np.zeros(4, ml_dtypes.bfloat16)), ("b", np.array(3.0))])) == 64
