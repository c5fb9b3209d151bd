"""The settings as a table for readers and as a JSON schema for editors, both made from the sections' classes."""

import json
from typing import Any

from iapo_bench.config.tier import TierConfig

SCHEMA, DOCUMENT = "configs/schema.json", "docs/settings.md"
_HEAD = """# Every setting

Made by `iapo-bench settings --write` from the classes in `iapo_bench/config/`. "Result" says whether a setting can
change a result: changing it then makes jobs run again. One that cannot may change the order of a sum, as
`micro_batch_tokens`, `cpus` and `gpus` do. Training amplifies this rounding: keep them where every digit counts.
Each section has its own table below.
"""


def documents() -> dict[str, str]:
    """The text of every generated file, by its path in the project."""
    schema = TierConfig.model_json_schema()
    sections = {"A tier": schema, **schema["$defs"]}
    parts = [_HEAD, *(_section(name, section) for name, section in sections.items() if "properties" in section)]
    return {SCHEMA: json.dumps(schema, indent=1) + "\n", DOCUMENT: "\n".join(parts)}


def _section(name: str, section: dict[str, Any]) -> str:
    lines = [f"## {name}\n", f"{section.get('description', '').strip()}\n"]
    lines += ["| setting | type | default | result | meaning |", "|---|---|---|---|---|"]
    for key, field in section["properties"].items():
        default = "required" if key in section.get("required", []) else f"`{json.dumps(field.get('default', {}))}`"
        changes = "no" if field.get("changes_result") is False else "yes"
        if "$ref" in field:
            default, changes = "required" if default == "required" else "its own", "its own"
        cells = [f"`{key}`", _kind(field), default, changes, " ".join(field["description"].split())]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _kind(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"section [{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(dict.fromkeys(_kind(option) for option in field["anyOf"]))
    if "enum" in field or "const" in field:
        return " or ".join(map(str, field.get("enum", [field.get("const")])))
    if field.get("type") == "array" and "items" in field:
        return f"list of {_kind(field['items'])}"
    return str(field.get("type", "any"))
