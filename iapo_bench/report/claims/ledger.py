"""The ledger's file: each claim with its sentence, its source and the check that decides it."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from iapo_bench.config.reading import read_yaml
from iapo_bench.errors import UserError


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Best(_Strict):
    kind: Literal["best"]
    measure: str
    method: str
    against: list[str]


class Change(_Strict):
    kind: Literal["change"]
    measure: str
    method: str
    against: list[str]
    direction: Literal["up", "down"]
    by: float | None = None
    tolerance: float = 0.0


class NoLoss(_Strict):
    kind: Literal["no_loss"]
    measure: str
    method: str
    against: str


class Time(_Strict):
    kind: Literal["time"]
    method: str
    against: str
    by: float
    tolerance: float


class Growth(_Strict):
    kind: Literal["growth"]
    column: str
    power: float


class Quantity(_Strict):
    value: float
    unit: str


class Units(_Strict):
    kind: Literal["units"]
    values: list[Quantity]


class Anchor(_Strict):
    kind: Literal["anchor"]
    measure: str
    method: str
    anchor: str


Check = Annotated[Best | Change | NoLoss | Time | Growth | Units | Anchor, Field(discriminator="kind")]


class Claim(_Strict):
    """A claim's sentence, its source, its check, and the models on whose published rows it is checked."""

    id: str
    sentence: str
    source: str
    check: Check
    published: list[str] = []


class Ledger(_Strict):
    claims: list[Claim]


def read_claims(path: Path) -> list[Claim]:
    """The claims of a ledger file. Raises UserError for a malformed file and for an id that occurs twice."""
    try:
        ledger = Ledger(**read_yaml(path)[0])
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {place}: {first['msg']}") from None
    ids = [claim.id for claim in ledger.claims]
    if twice := {i for i in ids if ids.count(i) > 1}:
        raise UserError(f"{path}: duplicate claim '{min(twice)}': keep one")
    return ledger.claims
