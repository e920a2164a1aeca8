"""The YAML files of trainers, read as data: no objects, and no aliases, through which a small file can stand for a huge one."""

from pathlib import Path
from typing import Any

import yaml

from attractorlab.models.unpickling import CheckpointError


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it uses aliases, which the trainers do not write")
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> Any:
    """What the file holds: mappings, lists, text and numbers.

    Raises:
        CheckpointError: If it is no such file.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError, LookupError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({(str(error).splitlines() or [type(error).__name__])[0]}). It is the YAML file that the trainer wrote. "
            "Copy it again, or take it away and pass what is asked for."
        ) from None
