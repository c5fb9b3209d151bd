"""The README's promises that a test can hold."""

import re
from pathlib import Path

import pytest

from iapo_bench.plugins import list_methods

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_quick_start_is_exactly_two_commands():
    section = README.split("## Quick start")[1].split("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert section.count("```") == 4
    assert len(blocks) == 2
    assert all(block.strip().count("\n") == 0 for block in blocks), "one line each"
    assert "results/table1.csv" in blocks[0]
    assert "pytest" in blocks[1]


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"`((?:configs|iapo_bench|results/published)/[\w./*]+)`", README)))
)
def test_files_that_it_names_exist(path):
    assert list(ROOT.glob(path)), path


def test_no_method_is_named_in_the_core():
    """The core knows no method by name: a method is found by its file."""
    names = {*list_methods(), "IAPO", "DAPO", "GFPO", "GTPO", "SGRPO"}
    for path in (ROOT / "iapo_bench").rglob("*.py"):
        # What is measured against, and the table of where the released code departs, method by method.
        if path.parent.name == "bench" or path.name == "departures.py":
            continue
        code = re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.DOTALL)
        found = {name for name in names if re.search(rf"\b{name}\b(?!-)", code)}
        assert not found - {"dapo"}, f"{path.name} names {found}"  # a dataset, too
