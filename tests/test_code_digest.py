"""The code of a result: what a stage executes changes its digest, and nothing else does."""

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from iapo_bench.machine import code

ROOT = Path(__file__).parent.parent
STAGES = {
    "prepare": "iapo_bench.worlds.prepare",
    "base": "iapo_bench.train.base",
    "train": "iapo_bench.train.run",
    "sample": "iapo_bench.evaluate.sample",
    "grade": "iapo_bench.evaluate.grade",
    "lm_eval": "iapo_bench.evaluate.lm_evaluation",
    "metrics": "iapo_bench.report.rows",
    "table": "iapo_bench.report.table1",
    "comparisons": "iapo_bench.report.comparisons",
    "token_roles": "iapo_bench.tokens.scores",
}
# A change of meaning in a file, and the stages of those above that execute it.
CHANGES = [
    ("iapo_bench/train/optimizer.py", "betas=(0.9, 0.99)", "betas=(0.9, 0.98)", {"base", "train"}),
    ("iapo_bench/train/trainer.py", "max_draws", "max_draw", {"train"}),
    ("iapo_bench/evaluate/sample.py", '"evaluation"', '"evaluations"', {"sample"}),
    ("iapo_bench/rollout/draw.py", "BLOCK = ", "BLOCK = 1 + ", {"train", "sample"}),
    ("iapo_bench/signals/packed.py", "import torch\n", "import torch\n\nODD = 1\n", {"train", "token_roles"}),
    ("iapo_bench/train/update.py", "MAX_LOG_RATIO = 20.0", "MAX_LOG_RATIO = 21.0", {"train"}),
    ("iapo_bench/config/train.py", "default=1e-6", "default=1e-5", {"train"}),
    ("iapo_bench/report/style.py", "STYLE", "STYLES", {"table", "comparisons", "token_roles"}),
    ("iapo_bench/evaluate/lm_evaluation.py", "do_sample: false", "do_sample: true", {"lm_eval"}),
    ("iapo_bench/worlds/own.py", "import csv", "import csv\n\nODD = 1\n", set()),
    ("iapo_bench/plan/costs.py", "3 * CHUNK_LOGITS", "4 * CHUNK_LOGITS", set()),
    ("iapo_bench/cli/steps.py", "run(job", "run( job", set()),
    ("iapo_bench/doctor.py", "examine", "examined", set()),
]


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """The project's code in a folder of its own."""
    folder = tmp_path_factory.mktemp("tree")
    for part in ("iapo_bench", "methods", "baselines", "rewards"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


@pytest.fixture
def copy(tree, monkeypatch) -> Iterator[Path]:
    """The tree whose digests are taken; what a test edits is taken back."""
    monkeypatch.setattr(code, "ROOT", tree)
    before = {path: path.read_text() for path in tree.glob("**/*.py")}
    yield tree
    for path in tree.glob("**/*.py"):
        if path not in before:
            path.unlink()
        elif path.read_text() != before[path]:
            path.write_text(before[path])


def digests(copy: Path, method: str = "methods/iapo.py") -> dict[str, str]:
    """The digest of every stage; of training, with a method's file."""
    plugins = {"train": [copy / method]}
    return {stage: code.code_digest(module, plugins.get(stage, [])) for stage, module in STAGES.items()}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, f"{path} no longer holds {old!r}: name another place"
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize(("file", "old", "new", "stale"), CHANGES, ids=[change[0] for change in CHANGES])
def test_a_change_of_meaning_makes_those_stale_that_execute_it(copy, file, old, new, stale):
    before = digests(copy)
    edit(copy / file, old, new)
    after = digests(copy)
    assert {stage for stage in STAGES if before[stage] != after[stage]} == stale


def test_what_people_read_makes_nothing_stale(copy):
    """A comment, a docstring and the words of an error, in every file of the project."""
    before = digests(copy)
    for path in copy.glob("**/*.py"):
        text = path.read_text()
        text = text.replace('"""', '"""Otherwise said. ', 1) if text.startswith('"""') else text
        path.write_text(f"{text}\n# A remark.\n".replace('raise UserError(f"', 'raise UserError(f"Mind: '))
    assert digests(copy) == before


def test_descriptions_of_settings_make_nothing_stale(copy):
    before = digests(copy)
    edit(copy / "iapo_bench/config/train.py", "learning rate of AdamW", "the learning rate")
    assert digests(copy) == before


def test_a_methods_file_makes_only_its_own_training_stale(copy):
    before, other = digests(copy), digests(copy, "baselines/gtpo.py")
    edit(copy / "methods/iapo.py", "EPS = 1e-6", "EPS = 1e-5")
    assert {stage for stage, value in digests(copy).items() if value != before[stage]} == {"train"}
    assert digests(copy, "baselines/gtpo.py") == other


def test_what_a_method_imports_counts(copy):
    (copy / "methods" / "_shared.py").write_text("WEIGHT = 1.0\n")
    (copy / "methods" / "mine.py").write_text("from methods._shared import WEIGHT\n")
    before = digests(copy, "methods/mine.py")
    (copy / "methods" / "_shared.py").write_text("WEIGHT = 2.0\n")
    assert digests(copy, "methods/mine.py")["train"] != before["train"]


USER = """
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

from iapo_bench.errors import UserError

if TYPE_CHECKING:
    from methods.alone import Kind
if not TYPE_CHECKING:
    from methods._own import SCALE

FOLDER = Path(__file__).parent
PATHS = (
    FOLDER / "data" / "weights.yaml",
    os.path.join(FOLDER, "data", "joined.yaml"),
    FOLDER.joinpath("data", "method.yaml"),
    f"{FOLDER}/data/text.yaml",
)


def weigh(count: int, tool=dict(description="gold")):
    assert count, "no rows"
    shared = importlib.import_module("methods._shared")
    return UserError("so few rows") if count < 2 else shared.WEIGHT
"""


@pytest.fixture
def user(copy) -> Path:
    """A method's file that imports by a name, reads data beside it, and names a type."""
    (copy / "methods" / "data").mkdir(exist_ok=True)
    for name in ("weights", "joined", "method", "text"):
        (copy / "methods" / "data" / f"{name}.yaml").write_text("first: 1\n")
    for name, text in (
        ("mine", USER),
        ("_shared", "WEIGHT = 1.0\n"),
        ("_own", "SCALE = 1.0\n"),
        ("alone", "Kind = int\n"),
    ):
        (copy / "methods" / f"{name}.py").write_text(text)
    return copy / "methods"


@pytest.mark.parametrize(
    ("file", "old", "new", "stale"),
    [
        ("_shared.py", "1.0", "2.0", True),
        ("_own.py", "1.0", "2.0", True),
        ("data/weights.yaml", "first: 1", "first: 2", True),
        ("data/joined.yaml", "first: 1", "first: 2", True),
        ("data/method.yaml", "first: 1", "first: 2", True),
        ("data/text.yaml", "first: 1", "first: 2", True),
        ("__init__.py", "", "ODD = 1\n", True),
        ("mine.py", "description=", "name=", True),
        ("mine.py", "gold", "silver", True),
        ("mine.py", "count < 2", "count < 3", True),
        ("mine.py", "no rows", "none", False),
        ("mine.py", "so few rows", "two rows are the fewest", False),
        ("alone.py", "int", "str", False),
    ],
)
def test_what_a_method_runs_reads_and_says(copy, user, file, old, new, stale):
    before = digests(copy, "methods/mine.py")
    path = user / file
    path.write_text(path.read_text().replace(old, new, 1))
    after = digests(copy, "methods/mine.py")
    assert {stage for stage in STAGES if before[stage] != after[stage]} == ({"train"} if stale else set())


def test_a_packages_init_runs_with_its_stage(copy):
    before = digests(copy)
    (copy / "iapo_bench/evaluate/__init__.py").write_text("ODD = 1\n")
    after = digests(copy)
    assert {stage for stage in STAGES if before[stage] != after[stage]} >= {"sample", "grade", "lm_eval"}
    assert before["train"] == after["train"]


def test_another_python_makes_nothing_stale(tmp_path):
    path = tmp_path / "some.py"
    path.write_text('class A:\n    def f(self, x: int = 1) -> str:\n        return f"{x!r:>{x}}" "b"\n')
    assert code._file_digest(path, 0).startswith("add819f6f06b")


def test_texts_that_another_python_splits_are_one():
    """Python 3.12.1 ends the format of `{x:>{y}}` with an empty text."""
    whole = ast.parse('y = f"{x:>{y}} ab"')
    split = ast.parse('y = f"{x:>{y}} ab"')
    joined = split.body[0].value
    joined.values[0].format_spec.values.append(ast.Constant(""))
    joined.values[1:] = [ast.Constant(" a"), ast.Constant("b")]
    assert ast.dump(split) != ast.dump(whole)
    assert code._plain(code._Essence().visit(split)) == code._plain(code._Essence().visit(whole))


def stems(module: str, room: str | None = None) -> set[str]:
    """Names of the files that a module's work runs through, those of one room if given."""
    return {path.stem for path in code.closure(code._file(module)) if room in (None, path.parent.name)}


def test_the_closure_is_tight():
    """Training knows nothing of tables, sampling nothing of training, tables nothing of torch's side."""
    rooms = {
        stage: {
            path.relative_to(ROOT / "iapo_bench").parts[0]
            for path in code.closure(code._file(module))
            if path.is_relative_to(ROOT / "iapo_bench")
        }
        for stage, module in STAGES.items()
    }
    assert not rooms["train"] & {"report", "evaluate", "tokens", "plan", "cli"}
    assert not rooms["sample"] & {"train", "report", "signals"}
    assert not rooms["grade"] & {"models", "rollout", "train", "signals", "report"}
    assert not rooms["table"] & {"models", "rollout", "train", "signals"}
    lenient = {stage for stage, module in STAGES.items() if "lenient" in stems(module)}
    assert lenient == {"grade"}
    for stage, module in STAGES.items():
        assert "tier" not in stems(module, "config"), f"{stage} reads its own settings, not the tier's"
