"""`iapo-bench new`, and the worked examples of docs/: what they give passes as it is, and nothing is written over."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iapo_bench.errors import UserError
from iapo_bench.new import KINDS
from iapo_bench.new.write import write_new

ROOT = Path(__file__).parent.parent
PARTS = ("iapo_bench", "methods", "baselines", "rewards", "configs", "pyproject.toml", "tests")
PAGES = tuple(ROOT / "docs" / f"your-{kind}.md" for kind in KINDS)
FOLDERS = {"method": "methods", "dataset": "iapo_bench/worlds/datasets", "reward": "rewards"}
SLIPS = {
    "method": ("* share_NG", "* length_NG"),
    "dataset": ("shares = (0.2, 0.1)", "shares = (0.7, 0.1)"),
    "reward": ("BUDGET / len(token_ids)", "len(token_ids) / BUDGET"),
}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the project in which every kind of file was made by the command."""
    folder = tmp_path_factory.mktemp("checkout")
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / part)
    for kind in KINDS:
        done = call(folder, "iapo_bench", "new", kind, f"my_{kind}")
        assert done.returncode == 0, done.stderr
        assert done.stdout.endswith(f"run: pytest {folder}/tests/test_my_{kind}.py\n")
    for page in PAGES:
        for path, text in listings(page).items():
            (folder / path).write_text(text)
    return folder


def listings(page: Path) -> dict[str, str]:
    """The listings of a page that begin with the comment `# PATH`, by path."""
    return dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", page.read_text(), re.DOTALL))


def call(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, env=environment, capture_output=True, text=True
    )


def pytest_in(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return call(checkout, "pytest", "-q", "-p", "no:cacheprovider", *arguments)


def test_what_is_written_passes_its_tests_and_the_linter(checkout):
    """A method also keeps every promise of a method. So do the worked examples of the pages."""
    shown = [path for page in PAGES for path in listings(page)]
    tests = [f"tests/test_my_{kind}.py" for kind in KINDS] + [path for path in shown if path.startswith("tests/")]
    assert len(tests) == 2 * len(KINDS)
    names = " or ".join(re.findall(r"test_(\w+)\.py", " ".join(tests)))
    done = pytest_in(checkout, *tests, "tests/test_method_contract.py", "-k", names)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.rsplit(" passed", 1)[0].rsplit(maxsplit=1)[-1]) > 4 * 5 + len(tests)
    files = [f"{FOLDERS[kind]}/my_{kind}.py" for kind in KINDS] + [path for path in shown if path not in tests]
    for command in (["check"], ["format", "--check"]):
        done = call(checkout, "ruff", *command, "--no-cache", *files, *tests)
        assert done.returncode == 0, done.stdout


def test_pytest_tests_the_checkout_that_it_is_called_in(checkout):
    """Not the one that pip installed: a second clone or a work tree shares the environment of the first."""
    command = [Path(sys.executable).with_name("pytest"), "-q", "-p", "no:cacheprovider", "tests/test_my_method.py"]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_written_test_notices_a_slip(checkout, kind):
    path = checkout / FOLDERS[kind] / f"my_{kind}.py"
    text = path.read_text()
    assert SLIPS[kind][0] in text
    path.write_text(text.replace(*SLIPS[kind]))
    done = pytest_in(checkout, f"tests/test_my_{kind}.py")
    path.write_text(text)
    assert done.returncode == 1, done.stdout


def skeleton(folder: Path) -> Path:
    for part in (*FOLDERS.values(), "tests"):
        (folder / part).mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["My", "2nd", "a-b", "class", "", "a/b"])
def test_a_name_that_python_cannot_import_is_refused(tmp_path, name):
    with pytest.raises(UserError, match="use lower-case letters, digits and _, a letter first"):
        write_new("method", name, skeleton(tmp_path))
    assert not list(tmp_path.glob("**/*.py"))


@pytest.mark.parametrize(
    ("name", "why"), [("base_short", "is reserved for the untrained"), ("data", "cannot name a f")]
)
def test_a_method_that_could_be_no_row_is_refused(tmp_path, name, why):
    with pytest.raises(UserError, match=f"'{name}' {why}"):
        write_new("method", name, skeleton(tmp_path))
    assert not list(tmp_path.glob("**/*.py"))
    assert write_new("reward", name, tmp_path)


def test_a_name_that_is_taken_is_refused(tmp_path):
    root = skeleton(tmp_path)
    with pytest.raises(UserError, match=r"baselines/grpo\.py exists: choose another name"):
        write_new("method", "grpo", root)
    (root / "tests" / "test_mine.py").write_text("kept")
    with pytest.raises(UserError, match=r"tests/test_mine\.py exists"):
        write_new("reward", "mine", root)
    assert [path.read_text() for path in root.glob("*/*.py")] == ["kept"]


@pytest.mark.parametrize("kept", [0, 1])
def test_a_kill_between_the_two_files_leaves_a_name_that_is_free(tmp_path, kept):
    paths = write_new("method", "mine", skeleton(tmp_path))
    texts = [path.read_text() for path in paths]
    paths[1 - kept].unlink()
    assert write_new("method", "mine", tmp_path) == paths
    assert [path.read_text() for path in paths] == texts
    paths[1 - kept].unlink()
    paths[kept].write_text(texts[kept] + "# mine")
    with pytest.raises(UserError, match="exists"):
        write_new("method", "mine", tmp_path)


def test_it_needs_a_checkout(tmp_path):
    (tmp_path / "methods").mkdir()
    with pytest.raises(UserError, match="tests does not exist: `iapo-bench new` needs a checkout"):
        write_new("method", "mine", tmp_path)
    assert not list((tmp_path / "methods").iterdir())


def test_the_command_refuses_in_one_line(run):
    assert run("new", "method", "grpo")[0] == 2
    assert "exists: choose another name" in run("new", "method", "grpo")[1]
    assert run("new", "song", "mine")[0] == 2
