# The front door. `snakemake --cores all` makes the default tier's tables and figures.
#
#   snakemake --cores all results/table1.csv                              the micro tier, two cores, no GPU
#   snakemake --cores all results/smollm2/table1.csv                      another tier
#   snakemake --cores all results/table1.csv --config methods='[iapo, grpo]'        some rows only
#   snakemake --cores all results/table1.csv --config train='{completions: 1024}'   any setting, by section
#   snakemake --cores all ablations                                       what each part of IAPO does
#   snakemake --cores all sensitivity                                     its two weights, on validation
#   snakemake --cores all fidelity protocol claims                        the released code and protocol, the claims
#   snakemake --cores all zoo                                             every method, equal budgets
#   snakemake --cores all tune                                            search on validation, equal budgets
#   snakemake --list                                                      every rule and what it does
import os
import re
import sys
from pathlib import Path

sys.path.insert(
    0, workflow.basedir
)  # the package beside this file, not one installed elsewhere
from iapo_bench import workflow as suite
from iapo_bench.cli import terminal
from iapo_bench.config import asked
from iapo_bench.errors import UserError
from iapo_bench.report import captions

try:
    asked.check_arguments(sys.argv)
    asked.check_call(Path(workflow.basedir), workflow.resource_settings.cores)
    TIER = asked.read_workflow_tier(
        config,
        workflow.config_settings.config,
        asked.asked_for(sys.argv),
        workflow.config_settings.configfiles,
    )
    FLOW = suite.Workflow(TIER)
except UserError as error:
    raise WorkflowError(str(error)) from None

# An executor may start a job as a separate run without targets: pass it the tier that they named.
if "tier" not in config and TIER.tier != "micro":
    workflow.config_settings.config_args = [
        *(workflow.config_settings.config_args or []),
        f"tier={TIER.tier}",
        *([] if TIER.world.file else [f"world={{name: {TIER.world.name}}}"]),
    ]

# Jobs on one machine share its memory and GPUs: cap what they request together at what it has. A cluster's profile
# overrides this.
for resource, there_is in suite.machine().items():
    if resource not in workflow.global_resources:
        workflow.register_resource(resource, there_is)

suite.prepare_environment()
TIER = FLOW.tier
WORK = FLOW.work  # what jobs make
OUT = FLOW.out  # what people read
RUNS = FLOW.runs
REQUESTS = {kind: TIER.request(kind) for kind in suite.KINDS}
# The environment of jobs that generate, for --sdm conda.
ENGINES = f"../configs/environment{'-vllm' if suite.needs_vllm(TIER) else ''}.yaml"

# The roles of tokens are known in the micro world only.
ROLES = (
    [
        f"{OUT}/informativeness.csv",
        f"{OUT}/roles.csv",
        f"{OUT}/calibration.csv",
        f"{OUT}/figures/informativeness.png",
    ]
    if TIER.world.name == "micro"
    else []
)
ALL = [
    f"{OUT}/table1.csv",
    f"{OUT}/report.html",
    f"{OUT}/comparisons.csv",
    f"{OUT}/figures/paired.png",
    f"{OUT}/frontier.csv",
    f"{OUT}/costs.csv",
    f"{OUT}/wallclock.csv",
    *([f"{OUT}/figures/training.png"] if FLOW.trained else []),
    f"{OUT}/lm_eval.csv",
    *ROLES,
]
# The report holds the artefacts that exist; its captions count the problems and seeds behind them.
if any(argument.partition("=")[0] == "--report" for argument in sys.argv):
    if "--report-after-run" not in sys.argv:
        ALL = [path for path in ALL if captions.is_whole(Path(path))]
    config.update(captions.report_texts(OUT))


report: "rules/captions/overview.rst"


wildcard_constraints:
    run=r"base|tune/[^/]+/trial\d+|sensitivity/point\d+|[^/]+/seed\d+",
    split="|".join(
        ["train", "validation", "test", *(f"also/{name}/test" for name in TIER.also)]
    ),
    dataset="|".join(TIER.also) or "(?!)",
    row="[^/]+",


onstart:
    terminal.start(workflow, FLOW)


onsuccess:
    terminal.end(workflow, OUT)


onerror:
    terminal.note(workflow)


rule all:
    """Every table and figure of the tier, except those of targets that train or measure more, such as ablations."""
    default_target: True
    input:
        ALL,


include: "rules/common.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/report.smk"
include: "rules/fidelity.smk"


if ROLES:

    include: "rules/tokens.smk"


include: "rules/search.smk"
include: "rules/zoo.smk"


# The log, benchmark and conda environment of every rule that runs a command.
for each_rule in workflow.rules:
    if each_rule.shellcmd and not each_rule.log:
        wildcards = [f"{{{name}}}" for name in sorted(each_rule.wildcard_names)]
        place = "/".join([each_rule.name, *wildcards])
        modifier = workflow.modifier.path_modifier
        each_rule.log_modifier = each_rule.benchmark_modifier = modifier
        each_rule.set_log(f"{WORK}/logs/{place}.log")
        each_rule.benchmark = f"{WORK}/benchmarks/{place}.tsv"
        each_rule.conda_env = each_rule.conda_env or "../configs/environment.yaml"
