"""The user's own functions, named `package.module:function` in the settings."""

import importlib
from collections.abc import Callable

from job.errors import ConfigError


def import_function(name: str, *, field: str) -> Callable[..., object]:
    """Import `package.module:function`.

    Raises:
        ConfigError: no such module or function.
    """
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{field}: {name} cannot be imported: {error}; is its package in the image?") from error
    if not callable(function):
        raise ConfigError(f"{field}: {name} must be a function, received {type(function).__name__}")
    return function  # type: ignore[no-any-return]
