"""Reads YAML files: recipes and lists of sources."""

from pathlib import Path

import yaml


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a section, of which YAML would keep the last value."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = set()
        for key_node, _ in node.value:
            if key_node.value in keys and key_node.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    "in a section", node.start_mark, f"the key {key_node.value!r} stands twice", key_node.start_mark
                )
            if isinstance(key_node.value, str):
                keys.add(key_node.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path):
    """
    Return what a YAML file holds.

    Raises:
        ValueError: if it is not valid YAML, holds several documents, or has a key twice, with the line and column.
    """
    try:
        return yaml.load(Path(path).read_text(encoding="utf-8"), _UniqueKeyLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
