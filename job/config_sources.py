"""Where settings come from: flags > environment (`MNIST_SECTION__FIELD`) > YAML file > defaults.

Owns the order of the sources, unknown names and the errors that name a setting.
"""

import contextlib
import difflib
import itertools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from job import ambient, strict_yaml
from job.config import Config, default_values, field_names
from job.contract import ENV_PREFIX, pod_from_environment
from job.errors import ConfigError
from job.masking import masked, without_secrets
from job.texts import one_line
from job.uris import shown, without_credentials

# What Kubernetes sets in every pod for a Service called `mnist` or `mnist-...`; ours all have a `__`.
_SERVICE_LINK = re.compile(r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")
_SHORT_NAMES = {"lr": "learning_rate", "bs": "global_batch_size", "wd": "weight_decay", "momentum": "optimizer"}
"""What people call a setting -> how it is called here."""


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
    given = _from_file(config_file) if config_file else {}
    given |= _from_environment(os.environ) | _from_flags(flags)
    return LoadedConfig(config=_build(given), origins={name: setting.origin for name, setting in given.items()})


def check_flags(flags: Sequence[str]) -> Config:
    """Flags over defaults, and nothing of this machine: settings that are meant for a pod.

    Raises:
        ConfigError: as from `load_config`.
    """
    return _build(_from_flags(flags))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setting:
    """A value that somebody gave, before it is checked, and where it came from."""

    value: object
    origin: str


def salvage(flags: Sequence[str], *, config_files: Iterable[Path] = ()) -> "Salvaged":
    """What can be said of settings that `load_config` refuses: who is to hear of it, and where. Never raises a ConfigError."""
    given: dict[str, _Setting] = {}
    lost: set[str] = set()
    for name, read in _readers(flags, config_files):
        try:
            given |= read()
        except (ConfigError, OSError, ValueError, yaml.YAMLError, RecursionError):
            lost.add(name)
    right: dict[str, _Setting] = {}
    for section in Config.model_fields:
        fields = {name: setting for name, setting in given.items() if name.partition(".")[0] == section}
        for some in (fields, *({name: setting} for name, setting in fields.items())):
            with contextlib.suppress(ConfigError):
                _build(right | some)
                right |= some
    return Salvaged(config=_build(right), given=frozenset(right), lost=frozenset(lost | (given.keys() - right.keys())))


@dataclass(frozen=True, slots=True, kw_only=True)
class Salvaged:
    """The settings that are right by themselves, the others at their defaults.

    Attributes:
        given: those that somebody gave, as `section.field`.
        lost: those that are wrong, and names that are no settings; `--config` for a file that could not be read.
    """

    config: Config
    given: frozenset[str]
    lost: frozenset[str]

    def is_whole(self, section: str) -> bool:
        """Whether nothing that was given for a section is lost."""
        return not any(name.partition(".")[0] in (section, "--config") for name in self.lost)


def _readers(
    flags: Sequence[str], config_files: Iterable[Path]
) -> Iterator[tuple[str, Callable[[], dict[str, _Setting]]]]:
    """(what is lost when it fails, what reads it), the weakest first."""
    for path in config_files:
        if path.is_file():  # a pipe has been read
            yield "--config", partial(_known_sections, path)
    if not pod_from_environment(os.environ).chart_version:
        for variable, text in os.environ.items():
            if variable.upper().startswith(ENV_PREFIX):
                name = variable.upper().removeprefix(ENV_PREFIX).lower().replace("__", ".")
                yield name, partial(_from_environment, {variable: text})
    for argument, following in itertools.zip_longest(flags, flags[1:], fillvalue="--"):
        if argument.startswith("--"):
            name, separator, _ = argument.removeprefix("--").partition("=")
            yield name, partial(_from_flags, [argument] if separator else [argument, following])


def _known_sections(path: Path) -> dict[str, _Setting]:
    content = strict_yaml.parse_settings(_read_text(path))
    sections = content if isinstance(content, dict) else {}
    return {
        f"{section}.{field}": _Setting(value=value, origin=str(path))
        for section, fields in sections.items()
        if section in Config.model_fields and isinstance(fields, dict)
        for field, value in fields.items()
    }


def _build(given: Mapping[str, _Setting]) -> Config:
    sections: dict[str, dict[str, object]] = {}
    for name, setting in given.items():
        section, _, field = name.partition(".")
        sections.setdefault(section, {})[field] = _checked(setting, name=name)
    try:
        config = Config.model_validate(sections)
    except ValidationError as error:
        origins = {name: setting.origin for name, setting in given.items()}
        raise ConfigError("\n".join(_describe_all(error, origins))) from error
    values = config.model_dump(mode="json")
    for name, setting in given.items():
        section, _, field = name.partition(".")
        _check_no_credentials(values[section][field], setting, name=name)
    return config


def _checked(setting: _Setting, *, name: str) -> object:
    """One rule for flags, variables and files: nothing is no value, a value is one line of text, and `null` is null."""
    value = setting.value
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            _check_text(text, name=name, origin=setting.origin)
    return value


def _check_no_credentials(value: object, setting: _Setting, *, name: str) -> None:
    """Those that a setting of any kind may hold, arguments of own code too; `uris.py` refuses them in URIs of its own.

    What was parsed is judged, each value with its key: the same from flags, variables and files.
    """
    without = without_secrets(value)
    if without != value or any(masked(key) != key for key in _keys_in(value)):
        received = shown(setting.value) if isinstance(setting.value, str) and without == value else shown(without)
        raise ConfigError(
            f"{name}: must hold no credentials, as settings are recorded; they come from the environment, received "
            f"{received} [{setting.origin}]"
        )


def _keys_in(value: object) -> Iterator[str]:
    """All keys of mappings, those inside of lists and mappings too."""
    if isinstance(value, dict):
        yield from value
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _keys_in(item)


def _check_text(text: str, *, name: str, origin: str) -> None:
    rule = ""
    if not text.strip() and default_values().get(name) != "":
        rule = "must have a value; leave it out for the default, write null for none and [] for an empty list"
    elif _is_not_one_line(text) and not name.endswith(".args"):
        rule = "must be one line without control characters"
    try:
        text.encode()
    except UnicodeEncodeError:
        rule = "must be UTF-8 text"
    if rule:
        raise ConfigError(f"{name}: {rule}, received {shown(text)} [{origin}]")


def _is_not_one_line(text: str) -> bool:
    return any(ord(letter) < 32 or ord(letter) in (0x7F, 0x85, 0x2028, 0x2029) for letter in text)


def nearest(name: str, known: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing when no known name is close."""
    return _did_you_mean(difflib.get_close_matches(name, known, n=1, cutoff=0.6))


def nearest_settings(given: str) -> list[str]:
    """Settings that somebody may mean with a name, the likeliest first: `lr`, `epochs`, `train.batch-size`."""
    section, _, field = given.lstrip("-").lower().replace("-", "_").rpartition(".")
    field = _SHORT_NAMES.get(field, field)
    known = field_names()
    named = [name for name in known if name.partition(".")[2] == field]
    named = named or [name for name in known if field and name.endswith(f"_{field}")]
    in_section = [name for name in named if name.startswith(f"{section}.")]
    return in_section or named[:3] or difflib.get_close_matches(f"{section}.{field}", known, n=1, cutoff=0.6)


def suggest_flag(argument: str) -> str:
    """`; did you mean --train.epochs?` for an argument that is no flag of this program; empty when nothing is close."""
    return _did_you_mean(f"--{name}" for name in nearest_settings(argument.partition("=")[0]))


def _did_you_mean(names: Iterable[str]) -> str:
    text = " or ".join(names)
    return f"; did you mean {text}?" if text else ""


def _from_flags(flags: Sequence[str]) -> dict[str, _Setting]:
    return {name: _Setting(value=_null_is_none(text), origin=f"--{name}") for name, text in parse_flags(flags).items()}


def _null_is_none(text: str) -> str | None:
    return None if text == "null" else text


def parse_flags(flags: Sequence[str]) -> dict[str, str]:
    """Name -> value; the last of several flags of one name wins, for lists too.

    Names are checked here: pydantic knows no nearest name.
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
            raise ConfigError(f"--{name}: unknown flag{suggest_flag(name)}; see mnist-job run --help")
        if not separator:
            if not remaining or remaining[0].startswith("--"):
                raise ConfigError(f"--{name}: must have a value, as in --{name}=VALUE")
            value = remaining.pop(0)
        values[name] = value
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, _Setting]:
    """Our variables, in upper or lower case; what starts like one and is none is refused.

    The chart makes the run's id of its values. A variable would change the result under the same id, so its pods take none.
    """
    known = {ENV_PREFIX + name.upper().replace(".", "__"): name for name in field_names()}
    is_pod_of_chart = bool(pod_from_environment(environ).chart_version)
    given: dict[str, _Setting] = {}
    for variable, text in environ.items():
        upper = variable.upper()
        name = known.get(upper)
        if name is None:
            _check_variable(variable)
        elif is_pod_of_chart:
            raise ConfigError(
                f"{variable}: must not be set in a pod of the chart, whose values give the settings and name the run; set {name} "
                "in the values, and take the variable out of the Secret, ConfigMap or image that sets it"
            )
        elif name in given:
            raise ConfigError(f"{name}: {given[name].origin} and {variable} are the same setting; keep one of the two")
        else:
            given[name] = _Setting(value=_null_is_none(text), origin=variable)
    return given


def _check_variable(variable: str) -> None:
    upper = variable.upper()
    if not upper.startswith(ENV_PREFIX) or variable in ambient.OWN_VARIABLES:
        return
    if "__" in upper or not _SERVICE_LINK.search(upper):
        raise ConfigError(f"{variable}: unknown variable{_suggest_variable(upper)}; see mnist-job run --help")


def _suggest_variable(upper: str) -> str:
    named = nearest_settings(upper.removeprefix(ENV_PREFIX).replace("__", "."))
    return _did_you_mean(ENV_PREFIX + name.upper().replace(".", "__") for name in named)


def _from_file(path: Path) -> dict[str, _Setting]:
    return {
        f"{section}.{field}": _Setting(value=value, origin=str(path))
        for section, fields in _read_yaml(path).items()
        for field, value in fields.items()
    }


def _read_text(path: Path) -> str:
    """All of a file or pipe that ends in time; a device may have no end."""
    limit = strict_yaml.MAX_CHARACTERS
    with path.open(encoding="utf-8") as file:
        text = file.read(limit + 1)
    if len(text) > limit:
        raise ConfigError(
            f"--config: {path} must hold at most {limit:,} characters, received more; name a file of settings"
        )
    return text


def _read_yaml(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = strict_yaml.parse_settings(_read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} cannot be read: {one_line(error)}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that no calendar has
        raise ConfigError(f"--config: {path} cannot be used: {_describe_yaml(error)}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"--config: {path} must hold sections such as 'train:', received {type(content).__name__}")
    for key, value in content.items():
        if key not in Config.model_fields:
            sections = list(Config.model_fields)
            hint = nearest(key, sections) or _did_you_mean(nearest_settings(key))
            raise ConfigError(
                f"{without_credentials(key)}: unknown section in {path}{hint}; known: {', '.join(sections)}"
            )
        if not isinstance(value, dict):
            raise ConfigError(
                f"{key}: must hold 'field: value' lines in {path}, received {without_credentials(str(value))[:80]}"
            )
    return content


def _describe_yaml(error: Exception) -> str:
    """What is wrong, and where; without the line itself, which may hold a part of anything."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return one_line(error, limit=300).replace(' in "<unicode string>",', " at")
    said = " ".join(filter(None, (getattr(error, "context", None), getattr(error, "problem", None))))
    return f"{one_line(said, limit=300)} at line {mark.line + 1}, column {mark.column + 1}"


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
        return f"{name}: unknown setting{_did_you_mean(nearest_settings(name))} [{origins.get(name, 'config')}]"
    rule = detail["msg"].removeprefix("Value error, ").replace("Input should be", "must be").replace("String ", "")
    if not parts:  # a contradiction between sections: likewise
        return str(rule)
    if len(parts) == 1:  # a contradiction between fields of a section: the text names them
        return f"{name}: {rule}"
    return f"{name}: {rule}, received {shown(detail['input'])} [{origins.get(name, 'default')}]"
