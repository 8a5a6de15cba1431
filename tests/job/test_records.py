"""JSON that others wrote: bounded and strict; each refusal is one short line that names the record."""

import re

import pytest

from job import records
from job.errors import IntegrityError

_OTHERS = {
    "[" * 1000: "nested deeper than 64",
    '{"a":' * 500 + "1" + "}" * 500: "nested deeper than 64",
    '{"a":' + "[" * 64 + "]" * 64 + "}": "nested deeper than 64",
    '{"a":' + "9" * 5000 + "}": "a number of 5000 digits",
    '{"a":18446744073709551616}': "a number of 20 digits",
    '{"a":1e999}': "finite",
    '{"a":0.' + "1" * 5000 + "}": "64 characters at most",
    '{"a":NaN}': "NaN is no number",
    '{"a":-Infinity}': "-Infinity is no number",
    '{"a":1,"b":2,"a":3}': "the key 'a' stands there twice",
    '{"a":"\\ud800"}': "half of a surrogate pair",
    '{"\\udc00":[{"b":1}]}': "half of a surrogate pair",
    "": "Expecting value",
    "\ufeff{}": "BOM",
    '{"a":1}{}': "Extra data",
    "[1]": "must hold a JSON object, received list",
    "null": "must hold a JSON object, received NoneType",
}


@pytest.mark.security("S5")
@pytest.mark.parametrize("text", _OTHERS, ids=[str(number) for number in range(len(_OTHERS))])
def test_what_is_no_bounded_json_object_is_refused_in_one_short_line(text: str) -> None:
    with pytest.raises(IntegrityError, match=re.escape(_OTHERS[text])) as caught:
        records.parse_object(text.encode(), name="store: runs/x/run.json")
    said = str(caught.value)
    assert said.startswith("store: runs/x/run.json ")
    assert len(said) < 300 and "\n" not in said


@pytest.mark.security("S5")
@pytest.mark.parametrize("data", [b'{"a":"\xff"}', '{"a":1}'.encode("utf-16"), b"\x00\x00\x00{"])
def test_other_bytes_than_utf8_are_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError, match=r"not UTF-8|Expecting value"):
        records.parse_object(data, name="it")


@pytest.mark.security("S5")
def test_a_record_that_is_too_long_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(IntegrityError, match="has 11 bytes; at most 10 are read"):
        records.parse_object(b"{" + b" " * 9 + b"}", name="it", max_bytes=10)


def test_the_program_s_own_values_are_read_back() -> None:
    text = '{"":[18446744073709551615,-9223372036854775808,1e308,0.1],"a":{"b":"\\ud83d\\ude00 \\n","c":[null,true]}}'
    expected = {"": [2**64 - 1, -(2**63), 1e308, 0.1], "a": {"b": "\U0001f600 \n", "c": [None, True]}}
    assert records.parse_object(text, name="it") == expected
    assert records.parse_object('{"a":' + "[" * 63 + "]" * 63 + "}", name="it")


@pytest.mark.parametrize("value", ["x" * 1000, {"a": 1}, ["a\nb"], "a\nb\x1b[31m", 10**60])
def test_a_received_value_is_shown_short_and_on_one_line(value: object) -> None:
    shown = records.show(value)
    assert len(shown) <= 64 and "\n" not in shown and "\x1b" not in shown
