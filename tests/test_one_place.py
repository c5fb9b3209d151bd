"""Files are read and written in one place, which turns any error into one line."""

import ast
import re
from pathlib import Path

import pytest

import iapo_bench

# What reads a file, or makes sense of what was read.
READS = re.compile(
    r"(json|yaml|csv|tomllib|pickle|torch|np)\.(load|loads|safe_load|reader|DictReader)|(pd|pq)\.read_\w+|pq\.ParquetFile|"
    r".*\.(open|read_text|read_bytes|from_pretrained)|open|safe_open|load_file|load_dataset"
)
# Outside of `with damaged(...)`, and why that is no way for a user's file to end in a traceback.
ELSEWHERE = {
    "files.py": (5, "the place itself"),
    "config/reading.py": (1, "the same for YAML"),
    "machine/gpu_lease.py": (1, "locks without content"),
    "machine/resume.py": (6, "files that carry a checksum"),
    "train/state.py": (3, "files that carry a checksum"),
    "train/trial.py": (1, "a buffer in memory"),
    "train/trainer.py": (1, "what a state that carries a checksum holds"),
    "train/log.py": (1, "a log that is opened to append"),
    "machine/provenance.py": (2, "the kernel's file; bytes for checksums"),
    "machine/code.py": (4, "our own source"),
    "cli/log.py": (2, "a log that was opened to write"),
    "train/base.py": (1, "a file of this package"),
    "models/sources.py": (2, "any error is one line there, with the remedy"),
    "models/checkpoints.py": (1, "what was just written"),
    "plan/show.py": (1, "any error is one line there, with the remedy"),
    "worlds/text.py": (1, "any error is one line there, with the remedy"),
    "worlds/load.py": (1, "a dataset is opened there, no file"),
    "worlds/own.py": (1, "csv.Error is one line there, with the line of the file"),
    "worlds/grading/processes.py": (1, "the kernel's file"),
    "staleness.py": (2, "bytes that are compared, and a round trip through JSON"),
    "report/results.py": (3, "bytes that are packed, and their checksum, whose caller names the file"),
    "bench/core.py": (1, "what its own workers answer"),
    "bench/core_worker.py": (2, "what the benchmark wrote"),
    "bench/trl_worker.py": (2, "what the benchmark wrote"),
    "bench/informativeness.py": (1, "the kernel's file"),
    "bench/metrics.py": (1, "what its own process answers"),
}


# What writes a file.
WRITES = re.compile(
    r"shutil\.copy\w*|.*\.(write_text|write_bytes|to_csv|to_parquet|savefig|save_pretrained)|torch\.save"
)
# Outside of a file or directory that gets its name when it is whole, and why.
APPENDED = {
    "bench/core.py": (1, "the benchmark's own folder"),
    "bench/informativeness.py": (1, "the kernel's file"),
    "evaluate/lm_evaluation.py": (1, "a temporary folder"),
    "evaluate/metrics.py": (1, "to a path that the caller makes whole"),
    "train/state.py": (1, "to a path that the caller makes whole"),
    "train/trial.py": (1, "a buffer in memory"),
}


def calls(pattern: re.Pattern[str], guard: str) -> dict[str, list[str]]:
    """By module, the calls whose function's name `pattern` matches, outside of `with` blocks that `guard` matches."""
    package = Path(iapo_bench.__file__).parent
    found: dict[str, list[str]] = {}
    for path in sorted(package.rglob("*.py")):
        tree = ast.parse(path.read_text())
        guarded = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.With) and any(re.search(guard, ast.unparse(item)) for item in block.items)
            for node in ast.walk(block)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and id(node) not in guarded and pattern.fullmatch(ast.unparse(node.func)):
                found.setdefault(str(path.relative_to(package)), []).append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize(
    ("pattern", "guard", "elsewhere"),
    [(READS, r"\bdamaged\(", ELSEWHERE), (WRITES, r"\bwhole_(file|directory)\(|ExitStack", APPENDED)],
    ids=["read", "written"],
)
def test_files_are_read_and_written_in_one_place(pattern, guard, elsewhere):
    """Other calls stand in `with damaged(...)` or `with whole_file(...)`, or are counted above with the reason."""
    found, known = calls(pattern, guard), {module: number for module, (number, _) in elsewhere.items()}
    assert {module: len(each) for module, each in found.items()} == known, found


def test_arrow_opens_every_table_itself():
    """A file of Python's, as pandas gives it, a thread of Arrow's may hold when the interpreter ends: that aborts."""
    package = Path(iapo_bench.__file__).parent
    found = [path for path in package.rglob("*.py") if re.search(r"\bpd\.read_(parquet|feather)\(", path.read_text())]
    assert not found
