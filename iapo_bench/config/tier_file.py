"""Tiers as they are written: a file, what it says of a dataset, choices made on validation, and the command line."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iapo_bench.config.model import MICRO_SOURCES
from iapo_bench.config.reading import CONFIG_DIR, Places, first_problem, merge, read_yaml, typed
from iapo_bench.config.tier import TierConfig
from iapo_bench.errors import UserError, unknown
from iapo_bench.plugins import list_methods

COMMAND_LINE = "--config"


def tier_path(name_or_path: str | Path) -> Path:
    """The file of a tier, by path or by name. Raises UserError for one that does not exist."""
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UserError(f"{path} does not exist")
        return path
    known = list_tiers()
    if str(name_or_path) not in known:
        raise unknown("tier", str(name_or_path), known)
    return known[str(name_or_path)]


def list_tiers() -> dict[str, Path]:
    """Every tier's file by name."""
    others = ("environment", "environment-vllm", "claims")
    return {path.stem: path for path in sorted(CONFIG_DIR.glob("*.yaml")) if path.stem not in others}


def read_tier(
    name_or_path: str | Path, given: dict[str, Any] | None = None, *, where: str = COMMAND_LINE
) -> TierConfig:
    """Read and check a tier; `given` is what the command line says, `where` how it said it.

    Raises UserError, one line, for a missing file, a misspelt key or a bad value, with the place of the mistake.
    """
    path = tier_path(name_or_path)
    content, places = read_yaml(path)
    return parse_tier(content, given, source=str(path), places=places, where=where)


def parse_tier(
    content: dict[str, Any],
    given: dict[str, Any] | None = None,
    *,
    source: str,
    places: Places | None = None,
    where: str = COMMAND_LINE,
) -> TierConfig:
    """A tier from its content, what it says of the chosen dataset, the choices made on validation and the command line.

    Raises UserError with the place of the mistake and the nearest known key.
    """
    places = dict(places or {})
    given = typed(given or {})
    laid = _lay_dataset(_make_room(content, given), given)
    rows, given = _rows(given, laid)
    _note(given, (), where, places)
    merged = merge(laid, given) | ({"methods": rows} if rows is not None else {})
    merged["given"] = merge(content.get("given") or {}, given)
    merged["tuned"], from_file = _tuned_choices(merged)
    places |= {("tuned", *path): place for path, place in from_file.items()}
    places |= {("methods", name): where for name in rows or {}}
    for section in ("methods", "ablations"):
        for name, entry in (merged.get(section) or {}).items() if isinstance(merged.get(section), dict) else ():
            parent = (entry.get("method") if isinstance(entry, dict) else None) or name
            measured = isinstance(entry, dict) and entry.get("checkpoint")
            if parent not in list_methods() and not measured:
                raise UserError(
                    f"{places.get((section, name), source)}: {unknown('method', str(parent), list_methods())}"
                )
    try:
        tier = TierConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError(first_problem(error, places, source, TierConfig)) from None
    tier._places.update(places)
    return tier


def _rows(given: dict[str, Any], laid: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The rows that a list of `methods` on the command line chooses, with the tier's entries, and the rest of it."""
    names = given.get("methods")
    if names is None or isinstance(names, dict):
        return None, given
    entries = {**(laid.get("ablations") or {}), **(laid.get("methods") or {})}
    rows = {str(name): entries.get(str(name)) for name in ([names] if isinstance(names, str) else names)}
    rest = {key: value for key, value in given.items() if key != "methods"}
    if varied := set(rows) & set(laid.get("ablations") or {}):
        laid["ablations"] = {name: entry for name, entry in laid["ablations"].items() if name not in varied}
    return rows, rest


def _note(value: Any, path: tuple[str, ...], where: str, places: Places) -> None:
    """Blame everything below `path` on `where`."""
    if path:
        places[path] = where
    if isinstance(value, dict):
        for key, item in value.items():
            _note(item, (*path, str(key)), where, places)


def _make_room(content: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The content without what does not fit a model or problems of one's own on the command line: the name and the
    fine-tuning of its model, all that it says of its dataset."""
    world, model = (given.get(section) for section in ("world", "model"))
    kept = dict(content)
    if isinstance(world, dict) and world.get("file"):
        kept["world"] = {}
    own = content.get("model")
    theirs = (None, *MICRO_SOURCES, own.get("source") if isinstance(own, dict) else None)
    if isinstance(model, dict) and isinstance(own, dict) and model.get("source") not in theirs:
        kept["model"] = {key: value for key, value in own.items() if key not in ("name", "sft")}
    return kept


def _tuned_choices(merged: dict[str, Any]) -> tuple[dict[str, Any], Places]:
    """The choices made on validation for this tier and dataset, if there are any; `tuned: null` leaves them out."""
    if "tuned" in merged:
        return merged["tuned"] or {}, {}
    try:
        choices = TierConfig.model_validate(merged).choices
    except ValidationError:  # of which the caller says where it is
        return {}, {}
    path = CONFIG_DIR / "tuned" / f"{choices}.yaml"
    return read_yaml(path) if path.is_file() else ({}, {})


def _lay_dataset(content: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The content with the chosen dataset's settings; none is left to be laid again when the result is read back."""
    datasets, world = content.get("datasets"), merge(content, given).get("world")
    if not isinstance(datasets, dict) or not datasets or not isinstance(world, dict):
        return dict(content)
    if (name := world.get("name")) not in datasets and not world.get("file"):
        raise unknown("dataset of this tier", str(name), map(str, datasets))
    laid = datasets.get(name) or {}
    return {**(merge(content, laid) if isinstance(laid, dict) else content), "datasets": {n: {} for n in datasets}}
