"""Reading a tier: its file, the part for one dataset, choices made on validation, and the command line."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iapo_bench.config.model import MICRO_SOURCES
from iapo_bench.config.reading import CONFIG_DIR, Places, first_problem, merge, placed, read_yaml, typed
from iapo_bench.config.tier import TierConfig
from iapo_bench.errors import UserError, unknown

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
    name_or_path: str | Path, given: dict[str, Any] | None = None, *, where: str | Places = COMMAND_LINE
) -> TierConfig:
    """Read and check a tier; `given`: settings of the command line; `where`: the option that set them, or their places.

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
    where: str | Places = COMMAND_LINE,
) -> TierConfig:
    """A tier from its content, its part for the chosen dataset, the choices made on validation and the command line.

    Raises UserError with the place of the mistake and the nearest known key.
    """
    given = typed(given or {})
    told = placed(given, where) if isinstance(where, str) else where
    if "given" in given:
        raise UserError(f"{told[('given',)]}: given: is not set by hand: write its settings without it")
    places = {**(places or {}), **told}
    content = _make_room(content, given)
    if not content.get("world"):
        places = {path: place for path, place in places.items() if path[0] != "world"} | told
    laid, chosen = _lay_dataset(content, given, places.get(("world", "name"), source))
    places |= {path[2:]: place for path, place in places.items() if path[:2] == ("datasets", chosen)} | told
    given = _lay_given(given, laid, chosen)
    rows, given = _rows(given, laid)
    merged = merge(laid, given) | ({"methods": rows} if rows is not None else {})
    merged["given"] = merge(content.get("given") or {}, _news(given, laid))
    merged["tuned"], from_file = _tuned_choices(merged)
    places |= {("tuned", *path): place for path, place in from_file.items()}
    places |= {("methods", name): places[("methods",)] for name in rows or {}}
    try:
        tier = TierConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError(first_problem(error, places, source, TierConfig)) from None
    tier._places.update(places)
    return tier


def _lay_given(given: dict[str, Any], laid: dict[str, Any], chosen: str) -> dict[str, Any]:
    """The command line with its own part for the chosen dataset merged in, below what it says for all datasets."""
    theirs, known = given.get("datasets"), laid.get("datasets")
    if not isinstance(theirs, dict) or not isinstance(known, dict):
        return given
    own = theirs.get(chosen, {})
    if not isinstance(own, dict):
        return given
    new = {name: part for name, part in theirs.items() if name not in known}
    rest = {key: value for key, value in given.items() if key != "datasets"} | ({"datasets": new} if new else {})
    return merge(own, rest)


def _news(given: dict[str, Any], laid: dict[str, Any]) -> dict[str, Any]:
    """The command line without a model or dataset that is the tier's own, for choices are kept by both; where the tier
    has several datasets, naming one is a choice."""
    news = dict(given)
    for section, key in (("model", "source"), *([] if laid.get("datasets") else [("world", "name")])):
        new, own = given.get(section), laid.get(section)
        if isinstance(new, dict) and isinstance(own, dict) and key in new and new[key] == own.get(key):
            news[section] = {name: value for name, value in new.items() if name != key}
    return news


def _rows(given: dict[str, Any], laid: dict[str, Any]) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    """The rows that a list of `methods` on the command line chooses, with their entries, and all other settings."""
    names = given.get("methods")
    if not isinstance(names, str | list):
        return None, given
    entries = {**(laid.get("ablations") or {}), **(laid.get("methods") or {})}
    rows = {str(name): entries.get(str(name)) for name in ([names] if isinstance(names, str) else names)}
    rest = {key: value for key, value in given.items() if key != "methods"}
    if varied := set(rows) & set(laid.get("ablations") or {}):
        laid["ablations"] = {name: entry for name, entry in laid["ablations"].items() if name not in varied}
    return rows, rest


def _make_room(content: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """The content without what does not fit the command line: where that names a user's own model or problems, the
    tier's model name, fine-tuning and `world` section; where it names a grid over other options, the tier's grid."""
    kept = dict(content)
    world, model, sensitivity = (given.get(section) for section in ("world", "model", "sensitivity"))
    if isinstance(world, dict) and world.get("file"):
        kept["world"] = {}
    own = content.get("model")
    theirs = (None, *MICRO_SOURCES, own.get("source") if isinstance(own, dict) else None)
    if isinstance(model, dict) and isinstance(own, dict) and model.get("source") not in theirs:
        kept["model"] = {key: value for key, value in own.items() if key not in ("name", "sft")}
    parts = (content.get("sensitivity"), sensitivity)
    grid, asked = (part.get("grid") if isinstance(part, dict) else None for part in parts)
    if isinstance(grid, dict) and isinstance(asked, dict) and not asked.keys() <= grid.keys():
        kept["sensitivity"] = {key: value for key, value in content["sensitivity"].items() if key != "grid"}
    return kept


def _tuned_choices(merged: dict[str, Any]) -> tuple[dict[str, Any], Places]:
    """The choices made on validation for this tier and dataset, if there are any; `tuned: null` leaves them out."""
    if "tuned" in merged:
        return merged["tuned"] or {}, {}
    try:
        choices = TierConfig.model_validate(merged).choices
    except ValidationError:  # the caller reports it with its place
        return {}, {}
    path = CONFIG_DIR / "tuned" / f"{choices}.yaml"
    return read_yaml(path) if path.is_file() else ({}, {})


def _lay_dataset(content: dict[str, Any], given: dict[str, Any], place: str) -> tuple[dict[str, Any], str]:
    """The content with the chosen dataset's settings merged in, and the dataset's name. The entries of `datasets` are
    emptied, so that reading the result back merges nothing again. `place`: where the dataset was chosen."""
    datasets, world = content.get("datasets"), merge(content, given).get("world")
    if not isinstance(datasets, dict) or not datasets or not isinstance(world, dict):
        return dict(content), ""
    if (name := world.get("name")) not in datasets and not world.get("file"):
        raise UserError(f"{place}: {unknown('dataset of this tier', str(name), map(str, datasets))}")
    laid = datasets.get(name) or {}
    content = merge(content, laid) if isinstance(laid, dict) else content
    return {**content, "datasets": {n: {} for n in datasets}}, str(name)
