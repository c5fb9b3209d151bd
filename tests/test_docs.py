"""The documentation says what the tree says."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("results/reference/**/*.md")])


def test_the_page_of_methods_is_up_to_date():
    spec = importlib.util.spec_from_file_location("build_docs", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    assert (ROOT / "docs/methods.md").read_text() == build.methods_page(), "run: python docs/build.py"


def test_the_site_has_every_page_of_docs():
    """docs/commands.md is made while the site is built."""
    named = set(re.findall(r"docs/[\w-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert named == {f"docs/{page.name}" for page in ROOT.glob("docs/*.md")} | {"docs/commands.md"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL))
    lost = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not lost
