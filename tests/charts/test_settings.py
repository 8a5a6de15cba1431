"""The settings of the job as values: the chart refuses what the job refuses, before there is a pod."""

import json

import pytest
from jsonschema import Draft7Validator

from job.config_sources import check_flags
from job.errors import ConfigError
from tests.charts.helm import CHART, RenderError, arguments, find, render, render_text

_SCHEMA = json.loads((CHART / "values.schema.json").read_text("utf-8"))

_TEXTS: dict[str, tuple[list[str], list[str]]] = {
    "run.id": (
        ["mine", "a.b-c", "0"],
        ["a b", "$(POD_NAME)", "A", "a_b", "-a", "a-", "a..b", "a" * 254, "a/b", "a.$(X)"],
    ),
    "run.suffix": (["", "again", "A_1"], ["a b", "$(POD_NAME)", "a/b", "a" * 64]),
    "data.source": (
        ["tfds", "idx", "digits", "m:f", "a.b_1:load", "_m:_f", "m\u00e4h:l\u00e4\u4e2d"],
        ["foo", "TFDS", "m:", ":f", "m:f:g", "m:__import__", "a b:f", "m.1:f", "$(POD_NAME)", "m-x:f", "..", "tfds2"],
    ),
    "data.uri": (
        [
            "/d",
            "file:/d",
            "s3://b",
            "gs://b/x/y",
            "az://$web/x/",
            "d",
            "./d",
            "../d",
            "..",
            "/a b",
            "/d/x:y",
            "1:x",
            "/a/$(X)",
        ],
        [
            "s3://b/../x",
            "s3://b/./x",
            "s3://b/..",
            "gs://b/x/.",
            "s3a://b",
            "S3://b",
            "https://h/x",
            "s3:b",
            "s3://",
            "s3://b//x",
            "s3://b/x?y",
            "s3://b/x#y",
            "s3://b/x%20",
            "c:\\d",
            "a\\b",
            "x:y",
            "/d ",
            " /d",
            "s3://b/x ",
        ],
    ),
    "data.dataset": (
        ["mnist", "emnist/digits", "a-b_c.d:e", "A1"],
        ["a b", "-a", "a//b", "$(POD_NAME)", "\u00e4", "a" * 101],
    ),
    "data.cache_dir": (["/c", "c", "file:/c", "/data/a b"], ["s3://b", "https://h", "a\\b"]),
    "model.build": (["m:f", "a.b:c"], ["f", "m:", "m:__class__", "a b:c", "m:f()", "$(POD_NAME)"]),
    "store.uri": (
        ["s3://b", "gs://b/x", "az://c/p/"],
        ["/tmp/x", "out", "s3://b/../x", "s3://b/.", "s3a://b", "http://h", "s3://", "b", "s3://b/x ", "file:/x "],
    ),
    "store.endpoint": (
        ["https://h:9000", "http://h/x"],
        ["h:9000", "ftp://h", "http://", "http://u:p@h", "http://h?x"],
    ),
    "promotion.model_name": (["mnist", "a-b_c.d"], ["a b", "A", "-a", "$(POD_NAME)"]),
    "observe.metrics_address": (["127.0.0.1", "::1"], ["localhost", "$(POD_IP)", "::ffff:1.2.3.4", "1.2.3"]),
    "observe.termination_log": (["/dev/termination-log", "log"], ["s3://b/x", "a\\b"]),
}
"""Setting -> texts that the job takes, and texts that it refuses."""
_COMPANY = {
    "data.uri": ["--data.source=idx"],
    "data.dataset": ["--data.source=a:b"],
}
_IDX = "--data.uri=/d"


@pytest.mark.parametrize("name", _TEXTS)
def test_the_schema_takes_the_texts_that_the_job_takes(name: str) -> None:
    """In one place: the patterns are those of `job/config.py`."""
    is_valid = Draft7Validator(_SCHEMA).is_valid
    section, _, field = name.partition(".")

    def is_taken_by_job(text: str) -> bool:
        company = [_IDX] if (name, text) == ("data.source", "idx") else _COMPANY.get(name, [])
        try:
            check_flags([*company, f"--{name}={text}"])
        except ConfigError as error:
            return not str(error).startswith(f"{name}:")
        return True

    fine, wrong = _TEXTS[name]
    assert [text for text in fine if not is_taken_by_job(text)] == []
    assert [text for text in wrong if is_taken_by_job(text)] == []
    assert [text for text in fine if not is_valid({section: {field: text}})] == []
    assert [text for text in wrong if is_valid({section: {field: text}})] == []


def test_names_of_arguments_are_checked_too() -> None:
    is_valid = Draft7Validator(_SCHEMA).is_valid
    assert is_valid({"model": {"args": {"width": 1, "_b": {"any key": 2}}}})
    assert not [key for key in ("a-b", "1a", "", "a b", "$(X)") if is_valid({"data": {"args": {key: 1}}})]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("model.dropout", "1.5", r"model\.dropout must be less than 1, received 1\.5; set another number"),
        ("model.dropout", "1", r"model\.dropout must be less than 1, received 1;"),
        ("train.learning_rate", "0", r"train\.learning_rate must be more than 0, received 0;"),
        ("train.learning_rate", "1e7", r"train\.learning_rate must be at most 1e\+06, received 1e7;"),
        ("train.weight_decay", "2", r"train\.weight_decay must be at most 1, received 2;"),
        ("cluster.peer_timeout_seconds", "5", r"cluster\.peer_timeout_seconds must be at least 10, received 5;"),
    ],
)
def test_a_number_as_text_keeps_its_bounds(name: str, text: str, message: str) -> None:
    """As `helm --set` and `--set-string` give it."""
    with pytest.raises(RenderError, match=message):
        render_text({}, flags=("--set-string", f"{name}={text}"))


def test_a_text_that_is_no_number_is_refused() -> None:
    """1e400 became 0: the run went on with another learning rate than the one that was given."""
    is_valid = Draft7Validator(_SCHEMA).is_valid
    for name in json.loads((CHART / "files/bounds.json").read_text("utf-8")):
        section, _, field = name.partition(".")
        for text in (
            "1e400",
            "1e-400",
            ".5",
            "0x1",
            " 1",
            "1 ",
            "+1",
            "-1",
            "1_0",
            "nan",
            "inf",
            "1,5",
            "1e",
            "9" * 400,
            "",
        ):
            assert not is_valid({section: {field: text}}), (name, text)
        assert is_valid({section: {field: "0.5"}})


def test_an_empty_text_is_no_setting() -> None:
    """It was an argument without a value, with which the pod ended with 64."""
    empty = {
        "run": {"id": ""},
        "data": {"cache_dir": ""},
        "store": {"endpoint": "", "uri": ""},
        "observe": {"metrics_address": "", "pushgateway_url": "", "termination_log": ""},
    }
    assert arguments(find(render(empty), "Job")) == arguments(find(render({}), "Job"))
    for name in ("data.uri", "model.build", "data.source", "data.dataset"):  # part of ids
        section, _, field = name.partition(".")
        assert not Draft7Validator(_SCHEMA).is_valid({section: {field: ""}}), name


@pytest.mark.parametrize("uri", ["..", "data", "./data", "file:data", "~/data"])
def test_a_folder_that_no_pod_has_is_refused(uri: str) -> None:
    with pytest.raises(
        RenderError, match=r"data\.uri must be an absolute folder of the pod .*, received .*; mount the data"
    ):
        render({"data": {"source": "idx", "uri": uri}})
