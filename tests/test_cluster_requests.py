"""What jobs ask a Slurm cluster for: the `sbatch` lines of a whole plan, caught where the plugin calls `sbatch`."""

import importlib.util
import json
import os
import re
import shlex
import stat
import sys
from pathlib import Path

import pytest
from project_copy import copy_project, snakemake

from iapo_bench.config.tier_file import list_tiers, read_tier

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("snakemake_executor_plugin_slurm") is None,
        reason="snakemake-executor-plugin-slurm is not installed",
    ),
]
# A cluster on which every job ends at once, with the outputs that Snakemake waits for.
SBATCH = """#!{python}
import json, sys
from pathlib import Path
folder = Path({folder!r})
jobs = json.loads((folder / "jobs.json").read_text())
comment = sys.argv[sys.argv.index("--comment") + 1]
with (folder / "sbatch.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
line = " ".join(sys.argv[1:])
for job in jobs:
    if all(part in line for part in job["named"]):
        for output in job["output"]:
            path = Path(output)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch() if path.suffix else path.mkdir(exist_ok=True)
print(len((folder / "sbatch.jsonl").read_text().splitlines()))
"""
ACCOUNT = "#!/bin/sh\necho lab\n"
NOTHING = [(name, "#!/bin/sh\n") for name in ("sinfo", "scancel", "scontrol")]
SACCT = """#!{python}
import sys
from pathlib import Path
if "Account" in " ".join(sys.argv):
    print("lab")
    sys.exit()
lines = Path({folder!r}, "sbatch.jsonl").read_text().splitlines()
print("\\n".join(f"{{i + 1}}|COMPLETED" for i in range(len(lines))))
"""


def planned(folder: Path, *options: str) -> list[dict]:
    """Rule, wildcards and outputs of every job of a dry run."""
    done = snakemake(folder, "--dry-run", *options)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    jobs = []
    for block in re.split(r"(?m)^(?=(?:local)?rule )", done.stdout):
        rule = re.search(r"(?m)^(?:local)?rule (\w+):", block)
        output = re.findall(r"(?m)^    (?:output|benchmark): (.*)", block)
        if rule and output:
            wildcards = re.search(r"(?m)^    wildcards: (.*)", block)
            named = [f"{rule[1]}:", *(wildcards[1].split(", ") if wildcards else [])]
            jobs.append({"rule": rule[1], "named": named, "output": ", ".join(output).split(", ")})
    return jobs


def submitted(folder: Path, *options: str) -> dict[str, list[dict[str, str]]]:
    """Options of the `sbatch` calls by rule."""
    jobs = planned(folder, *options)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    tools = folder / "bin"
    tools.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SACCT), ("sacct", SACCT), ("sacctmgr", ACCOUNT), *NOTHING):
        path = tools / name
        path.write_text(text.format(python=sys.executable, folder=str(folder)))
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
    waits = ["--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1"]
    waits += ["--seconds-between-status-checks", "1", "--latency-wait", "5"]
    path = f"{tools}{os.pathsep}{os.environ['PATH']}"
    plugins = str(Path(str(importlib.util.find_spec("snakemake_executor_plugin_slurm").origin)).parent.parent)
    profile = ["--profile", "profiles/slurm", *waits]
    done = snakemake(folder, *profile, *options, cores=False, PATH=path, PYTHONPATH=plugins)
    assert done.returncode == 0, done.stderr[-3000:]
    calls: dict[str, list[dict[str, str]]] = {}
    for line in (folder / "sbatch.jsonl").read_text().splitlines():
        words = json.loads(line)
        text = shlex.join(words)
        found = dict(re.findall(r"--(gpus|cpus-per-task|nodes|ntasks|mem|comment)[= ]('[^']*'|\S+)", text))
        found["time"] = words[words.index("-t") + 1]
        found["alone"] = "--exclusive" in words
        rule = re.match(r"'?rule_([a-z_]+?)(?:_wildcards|'|$)", found["comment"])
        calls.setdefault(rule[1] if rule else found["comment"], []).append(found)
    assert sum(map(len, calls.values())) == len(jobs)
    return calls


@pytest.mark.parametrize("name", sorted(set(list_tiers()) - {"smoke", "smoke-0.5b"}))
def test_every_job_asks_for_what_its_kind_gets(tmp_path, name):
    tier = read_tier(name)
    folder = copy_project(tmp_path)
    method = next(iter(tier.methods))
    targets = ["all"] if tier.gpus > 1 else ["all", "time"]
    calls = submitted(folder, "--config", f"tier={name}", f"methods=[{method}]", "train={seeds: [0]}", "--", *targets)
    kinds = {"prepare": "prepare", "base": "base", "train": "train", "sample": "sample", "grade": "grade"}
    kinds |= {"lm_eval": "lm_eval"} | (
        {"token_roles": "sample", "calibration": "sample"} if "token_roles" in calls else {}
    )
    if "time" in targets:
        kinds["time"] = "train"
    if not tier.trained:
        kinds = {**kinds, "checkpoint": "base"}
        del kinds["train"]
    for rule, kind in kinds.items():
        wanted = tier.request(kind)
        for call in calls.pop(rule):
            assert call.get("gpus") == (str(wanted.gpus) if wanted.gpus else None), rule
            assert call["cpus-per-task"] == str(wanted.cpus), rule
            assert call["mem"] == str(wanted.mem_mb), rule
            assert call["time"] == str(wanted.runtime), rule
            assert call["nodes"] == "1", rule
            assert call["alone"] == (rule == "time"), rule
    assert calls, "tables and figures are jobs too"
    for rule, others in calls.items():
        assert [(c.get("gpus"), c["mem"], c["time"], c["ntasks"]) for c in others] == [
            (None, "4000", "60", "1") for _ in others
        ], rule


def test_eight_gpus_are_asked_for_whatever_the_submitting_host_has():
    """The largest tier, as numbers: a test that read them from the settings alone would not see them halved."""
    tier = read_tier("qwen-7b")
    assert tier.request("train").model_dump() == {"gpus": 8, "cpus": 64, "mem_mb": 480000, "runtime": 5760}
    assert tier.request("sample").gpus == 1
    assert tier.request("base").gpus == tier.request("grade").gpus == tier.request("prepare").gpus == 0
