"""Data as YAML for people: keys in the order that they have, several lines of text as a block."""

from __future__ import annotations

from typing import Any


def as_yaml(value: object) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):  # type: ignore[misc]  # it has no types
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> Any:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    return str(yaml.dump(value, Dumper=Dumper, sort_keys=False, width=1_000_000))
