"""The generated reference of settings is what the sections' classes say."""

from pathlib import Path

import pytest

from iapo_bench.config.reference import documents

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("path", documents())
def test_it_is_up_to_date(path):
    assert (ROOT / path).read_text() == documents()[path], "run: iapo-bench settings --write"
