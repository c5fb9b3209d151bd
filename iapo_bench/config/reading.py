"""Strict YAML: a duplicate key is an error, `1e-6` is a number, and every value knows its file and line."""

import re
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from iapo_bench.errors import UserError, unknown
from iapo_bench.files import read_text

CONFIG_DIR = Path(__file__).parent.parent.parent / "configs"

_NO_TEXT = re.compile("[\0\ud800-\udfff]")  # neither a path nor UTF-8
_DEEPEST, _LARGEST = 50, 100_000  # nesting and number of settings in a file

Path_ = tuple[str, ...]
Places = dict[Path_, str]


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that 1e-6 is a float and a duplicate key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[Any, int] = {}
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            line = key_node.start_mark.line + 1
            if isinstance(key, str | int | float | bool) or key is None:
                if key in seen:
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"duplicate key '{key}'" + (f", at lines {seen[key]} and {line}" if seen[key] != line else ""),
                        key_node.start_mark,
                    )
                seen[key] = line
        return super().construct_mapping(node, deep)

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if _NO_TEXT.search(text):
            raise yaml.constructor.ConstructorError(None, None, "no text can hold this character", node.start_mark)
        return text


class _Dumper(yaml.SafeDumper):
    """Quotes every text that `_Loader` would read as a number, such as the digest 679e61750571."""


_FLOAT = re.compile(r"^[-+]?\d[\d_]*(\.[\d_]*)?[eE][-+]?\d+$")
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789"))


def dump_yaml(content: dict[str, Any]) -> str:
    """YAML text that `parse_yaml` reads back as `content`, keys in order."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False)


def parse_yaml(text: str, source: str) -> tuple[Any, Places]:
    """The content of YAML text, and the place ("FILE:LINE") of each value by its path of keys.

    Raises UserError, one line with file and line, for invalid YAML.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        content = yaml.load(text, Loader=_Loader)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
    ) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark else source
        reason = getattr(error, "problem", None) or str(error) or type(error).__name__
        raise UserError(f"{place} is not YAML: {' '.join(str(reason).split())}") from None
    places: Places = {}
    _note(node, (), source, places)
    return content, places


def _note(node: Any, path: Path_, source: str, places: Places) -> None:
    # Aliases can make a short file endless, or larger than any memory.
    if len(path) > _DEEPEST or len(places) > _LARGEST:
        raise UserError(f"{source} is nested too deeply or holds too many settings: write it without aliases")
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            below = (*path, str(key.value))
            places[below] = f"{source}:{key.start_mark.line + 1}"
            _note(value, below, source, places)


def read_yaml(path: Path) -> tuple[dict[str, Any], Places]:
    """A YAML file that holds a mapping. Raises UserError naming file and line when it does not."""
    content, places = parse_yaml(read_text(path), str(path))
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no settings: write KEY: VALUE lines")
    return content, places


def typed(value: Any) -> Any:
    """Convert the strings that Snakemake leaves inside a value of --config to numbers, booleans and null."""
    if isinstance(value, dict):
        return {key: typed(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [typed(item) for item in value]
    if not isinstance(value, str):
        return value
    for kind in (int, float):
        with suppress(ValueError):
            return kind(value)
    return {"true": True, "false": False, "null": None}.get(value.lower(), value)


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A copy of `base` updated with `over`, recursively for mappings."""
    out = dict(base)
    for key, value in over.items():
        out[key] = merge(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
    return out


def placed(value: Any, where: str, path: Path_ = ()) -> Places:
    """`where` as the place of every key in a value."""
    items = value.items() if isinstance(value, dict) else ()
    below = {p: place for key, item in items for p, place in placed(item, where, (*path, str(key))).items()}
    return ({path: where} if path else {}) | below


def nest(key: str, value: Any) -> dict[str, Any]:
    """`a.b.c` and a value as nested mappings."""
    for part in reversed(key.split(".")):
        value = {part: value}
    return value


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section in a field's annotation, also inside an optional, a mapping or a list; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := section_of(part))), None)


def first_problem(error: ValidationError, places: Places, source: str, top: type[BaseModel]) -> str:
    """The first mistake in a section `top`, as a line that begins with its place, or `source` if that is unknown."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    path = [*map(str, first["loc"]), *getattr(cause, "path", ())]
    place = next((places[tuple(path[:n])] for n in range(len(path), 0, -1) if tuple(path[:n]) in places), source)
    if first["type"] == "extra_forbidden":
        section = top
        for part in path[:-1]:
            if part in section.model_fields:  # else the name of an entry, whose section we have
                section = section_of(section.model_fields[part].annotation) or section
        return f"{place}: {'.'.join(path[:-1]) or 'top level'}: {unknown('key', path[-1], section.model_fields)}"
    return f"{place}: {'.'.join(path) or 'settings'}: {first['msg'].removeprefix('Value error, ')}"
