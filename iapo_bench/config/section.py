"""The base class of every section of settings, and the mark of settings that cannot change a result."""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.fields import FieldInfo

from iapo_bench.files import first_infinite

Positive = Annotated[int, Field(gt=0)]
# Marks a setting that cannot change a result beyond rounding, only memory, time or what is kept: no part of a run's
# identity.
FREE: dict[str, Any] = {"changes_result": False}


def _require_finite(value: Any) -> Any:
    if first_infinite(value) is not None:
        raise ValueError("must be a finite number")
    return value


# Settings that a section cannot name, such as a method's options.
Options = dict[str, Annotated[Any, AfterValidator(_require_finite)]]


class ByContent(str):
    """The path of a local input that counts by its content: `identity` gives `content`, a digest of it."""

    content: str

    def __new__(cls, path: str | Path, content: str) -> Self:
        self = super().__new__(cls, path)
        self.content = f"directory {content}"
        return self


class Misplaced(ValueError):
    """A conflict between settings; `path`: the one to change, relative to the section that found the conflict."""

    def __init__(self, message: str, *path: str) -> None:
        super().__init__(message)
        self.path = path


class Section(BaseModel):
    """A section: unknown keys and numbers that are not finite are errors, and instances are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def identity(section: BaseModel) -> dict[str, Any]:
    """A section as plain values, without the settings that cannot change a result."""
    return {
        name: _plain(getattr(section, name)) for name, field in type(section).model_fields.items() if not is_free(field)
    }


def is_free(field: FieldInfo) -> bool:
    """Whether a setting cannot change a result."""
    extra = field.json_schema_extra
    return isinstance(extra, dict) and extra.get("changes_result") is False


def _plain(value: Any) -> Any:
    if isinstance(value, ByContent):
        return value.content
    if isinstance(value, BaseModel):
        return identity(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def digest(value: Any) -> str:
    """A short, stable hash of plain values: 12 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:12]


def slug(name: str) -> str:
    """A name as a folder name: lower-case letters, digits, `-` and `_`."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-") or "mine"
