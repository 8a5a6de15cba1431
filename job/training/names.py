"""Names of layers and variables that tell nothing of what else a process has made (docs/adr/0020).

Keras counts layers that nobody named: `dense`, `dense_1`. A build that makes other layers first, or not each time the same number
of them, gives the same model other names. Here the first automatic `dense` of a model is `dense`, whatever was made before it.
"""

import json
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from job.training.devices import layers_of


def renamed_by_position(model: Any) -> dict[str, str]:
    """Automatic name of a layer or variable -> the same name, counted in this model alone; names that stay are left out.

    Args:
        model: must be the last one that `model.build_model` has made: Keras' counters tell automatic names from others.
    """
    names = {layer.name for layer in layers_of(model)}
    names |= {segment for variable in model.variables for segment in variable.path.split("/")}
    compiled = model.get_compile_config() if model.compiled else None  # of an optimizer, and of own metrics and losses
    names |= set(re.findall(r'"name": "([^"/]+)"', json.dumps(compiled, default=str)))
    numbers = defaultdict[str, dict[int, str]](dict)
    counters = _counters()
    for name in names:
        prefix, number = _split(name, counters)
        if number < counters.get(prefix, 0):
            numbers[prefix][number] = name
    renamed = {
        of_prefix[number]: f"{prefix}_{position}" if position else prefix
        for prefix, of_prefix in numbers.items()
        for position, number in enumerate(sorted(of_prefix))
    }
    return {before: after for before, after in renamed.items() if before != after}


def rename(text: str, renamed: Mapping[str, str]) -> str:
    """A path, or JSON with names and paths in it, under the new names."""
    return re.sub(r'[^"/]+', lambda found: renamed.get(found[0], found[0]), text)


def _counters() -> Mapping[str, int]:
    """Prefix -> number of automatic names that Keras has given since `reset_uids`."""
    from keras.src.backend.common import global_state

    return global_state.get_global_attribute("object_name_uids") or {}


def _split(name: str, counters: Mapping[str, int]) -> tuple[str, int]:
    """`dense_2` -> (`dense`, 2), `dense` -> (`dense`, 0); a class may itself be called `Conv_2`."""
    found = re.fullmatch(r"(.+)_([1-9][0-9]*)", name)
    return (found[1], int(found[2])) if found and name not in counters else (name, 0)
