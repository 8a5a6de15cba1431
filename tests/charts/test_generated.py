"""The generated files of the chart are up to date. `python -m tests.charts.generated` writes them again."""

import json

import yaml

from job.config import field_names
from tests.charts import generated
from tests.charts.helm import CHART


def test_schema_is_made_of_the_settings() -> None:
    assert generated.SCHEMA.read_text() == generated.make_schema()


def test_defaults_are_those_of_the_settings() -> None:
    assert generated.DEFAULTS.read_text() == generated.make_defaults()


def test_table_in_the_readme_is_made_of_the_values() -> None:
    assert generated.make_table() in generated.README.read_text()


def test_every_setting_is_in_schema_and_defaults() -> None:
    schema, defaults = json.loads(generated.SCHEMA.read_text()), json.loads(generated.DEFAULTS.read_text())
    for name in field_names():
        section, field = name.split(".")
        assert field in schema["properties"][section]["properties"]
        assert field in defaults[section]
        assert schema["properties"][section]["additionalProperties"] is False


def test_every_value_is_described_and_every_description_has_a_value() -> None:
    schema = json.loads(generated.SCHEMA.read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) == set(values) | {"global"}
    rows = generated.describe_values()
    assert {name.partition(".")[0] for name, _, _ in rows} == set(values)
    assert all(comment for _, _, comment in rows)


def test_values_are_short_enough_to_be_read() -> None:
    assert len((CHART / "values.yaml").read_text().splitlines()) <= 180
