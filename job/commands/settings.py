"""The commands about settings: config show, config schema."""

import json

from job import contract
from job.commands.cli import CommandLine
from job.config import describe_fields, to_text
from job.config_sources import LoadedConfig
from job.masking import without_secrets


def show(line: CommandLine, loaded: LoadedConfig) -> int:
    """Print the effective settings as YAML, each with where it came from."""
    values = loaded.config.model_dump(mode="python")
    section = ""
    for name, _, _ in describe_fields():
        current, field = name.split(".")
        if current != section:
            section = current
            print(f"{section}:")
        entry = f"  {field}: {to_text(without_secrets(values[section][field], name=field))}"
        print(f"{entry:<44}# {loaded.origins.get(name, 'default')}")
    return contract.ExitCode.OK


def print_schema(line: CommandLine, loaded: LoadedConfig) -> int:
    """Print the settings as JSON Schema."""
    print(json.dumps(type(loaded.config).model_json_schema(), indent=2))
    return contract.ExitCode.OK
