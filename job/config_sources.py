"""Where settings come from: flags > environment (`MNIST_SECTION__FIELD`) > YAML file > defaults.

Owns the order of the sources, unknown names and the errors that name a setting.
"""

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_settings import SettingsError

from job.config import Config, field_names
from job.contract import ENV_PREFIX
from job.errors import ConfigError
from job.texts import one_line
from job.uris import shown

# What Kubernetes sets in every pod for a Service called `mnist` or `mnist-...`; ours all have a `__`.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedConfig:
    """A config and where each value came from (`section.field` -> flag, variable, file; absent = default)."""

    config: Config
    origins: Mapping[str, str]


def load_config(flags: Sequence[str], *, config_file: Path | None = None) -> LoadedConfig:
    """Read all sources.

    Args:
        flags: `--section.field=VALUE` or `--section.field VALUE`, as given on the command line.
        config_file: YAML file with the sections as top-level keys.

    Raises:
        ConfigError: one line per bad setting, with its name, the rule, what was received and the nearest name.
    """
    flag_values = parse_flags(flags)
    from_environment = _environment_origins(os.environ)
    from_file = _read_yaml(config_file) if config_file else {}
    origins = {name: str(config_file) for name in _leaf_names(from_file)}
    origins |= from_environment | {name: f"--{name}" for name in flag_values}
    return LoadedConfig(config=_build(Config, flag_values, origins=origins, from_file=from_file), origins=origins)


def check_flags(flags: Sequence[str]) -> Config:
    """Flags over defaults, and nothing of this machine: settings that are meant for a pod.

    Raises:
        ConfigError: as from `load_config`.
    """
    values = parse_flags(flags)
    return _build(_FlagsOnly, values, origins={name: f"--{name}" for name in values}, from_file={})


class _FlagsOnly(Config):
    """The same schema, deaf to the environment."""

    reads_environment = False


def _build(
    kind: type[Config], flags: Mapping[str, str], *, origins: Mapping[str, str], from_file: Mapping[str, Any]
) -> Config:
    try:
        return kind(_cli_parse_args=[f"--{name}={value}" for name, value in flags.items()], **from_file)
    except ValidationError as error:
        raise ConfigError("\n".join(_describe_all(error, origins))) from error
    except SettingsError as error:
        raise ConfigError(one_line(error)) from error


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing when no known name is close."""
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"; did you mean {matches[0]}?" if matches else ""


def parse_flags(flags: Sequence[str]) -> dict[str, str]:
    """Name -> value; the last of several flags of one name wins, for lists too.

    Names are checked here, before pydantic sees them: it knows no nearest name.
    """
    known = field_names()
    values: dict[str, str] = {}
    remaining = list(flags)
    while remaining:
        argument = remaining.pop(0)
        name, separator, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--"):
            raise ConfigError(f"{argument}: must be --section.field=VALUE; see mnist-job run --help")
        if name not in known:
            hint = nearest(name.replace("-", "_"), known)
            raise ConfigError(f"--{name}: unknown flag{hint.replace('mean ', 'mean --')}; see mnist-job run --help")
        if not separator:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"--{name}: must have a value, as in --{name}=VALUE")
            value = remaining.pop(0)
        values[name] = _checked_text(value, name=f"--{name}")
    return values


def _checked_text(value: str, *, name: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"{name}: must be UTF-8 text, received {value[:80]!a}") from error
    return value


def _environment_origins(environ: Mapping[str, str]) -> dict[str, str]:
    """Check our variables' names: pydantic ignores an unknown one without a word."""
    known = {ENV_PREFIX + name.upper().replace(".", "__"): name for name in field_names()}
    origins: dict[str, str] = {}
    for variable in environ:
        upper = variable.upper()
        if not upper.startswith(ENV_PREFIX):
            continue
        if upper in known:
            _checked_text(environ[variable], name=variable)
            origins[known[upper]] = variable
        elif "__" in upper or not _SERVICE_LINK.search(upper):
            raise ConfigError(f"{variable}: unknown variable{nearest(upper, list(known))}; see mnist-job run --help")
    return origins


class _StrictLoader(yaml.SafeLoader):
    """YAML that refuses a key that is there twice: the first one would be dropped without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As in `SafeLoader`."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is there twice", node.start_mark)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # noqa: S506 - a SafeLoader
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} cannot be read: {one_line(error)}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise ConfigError(f"--config: {path} is not YAML: {one_line(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ConfigError(f"--config: {path} must hold sections such as 'train:', received {type(content).__name__}")
    for key, value in content.items():
        if key not in Config.model_fields:
            sections = list(Config.model_fields)
            raise ConfigError(f"{key}: unknown section in {path}{nearest(key, sections)}; known: {', '.join(sections)}")
        if not isinstance(value, dict):
            raise ConfigError(f"{key}: must hold 'field: value' lines in {path}, received {value!r}")
    return content


def _leaf_names(content: Mapping[str, Any]) -> list[str]:
    return [f"{section}.{field}" for section, fields in content.items() for field in fields]


def _describe_all(error: ValidationError, origins: Mapping[str, str]) -> list[str]:
    """One line per setting: a value that fits none of several types is reported once."""
    lines: dict[tuple[object, ...], str] = {}
    for detail in error.errors():
        lines.setdefault(detail["loc"][:2], _describe(detail, origins))
    return list(lines.values())


def _describe(detail: Any, origins: Mapping[str, str]) -> str:
    """One validation error as one line: name, rule, received, origin, and the nearest name for an unknown one."""
    parts = [str(part) for part in detail["loc"]]
    name = ".".join(parts[:2])
    if detail["type"] == "extra_forbidden":
        return f"{name}: unknown setting{nearest(name, field_names())} [{origins.get(name, 'config')}]"
    rule = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be").replace("String ", "")
    if not parts:  # a contradiction between sections: likewise
        return str(rule)
    if len(parts) == 1:  # a contradiction between fields of a section: the text names them
        return f"{name}: {rule}"
    return f"{name}: {rule}, received {shown(detail['input'])} [{origins.get(name, 'default')}]"
