# The front door. `snakemake --cores all` makes the default tier's table, figures and wall-clock figures.
#
#   snakemake --cores all results/table1.csv                              the micro tier, two cores, no GPU
#   snakemake --cores all results/smollm2/table1.csv                      another tier
#   snakemake --cores all results/table1.csv --config train='{completions: 1024}'   any setting, by section
#   snakemake --cores all ablations                                       what each part of IAPO does
#   snakemake --cores all sensitivity                                     its two weights, on validation
#   snakemake --cores all tune                                            search on validation, equal budgets
#   snakemake --cores all --config tier=qwen-0.5b world='{name: math500}'           a tier with several datasets
#   snakemake -s paper.smk --cores all                                    every model and dataset of the paper
import sys

import psutil

sys.path.insert(
    0, workflow.basedir
)  # the package beside this file, not one installed elsewhere
from iapo_bench.config import search_space
from iapo_bench.errors import UserError
from iapo_bench.workflow import (
    asked_for,
    code_digest,
    export_settings,
    read_workflow_tier,
)

try:
    TIER = read_workflow_tier(
        config,
        workflow.config_settings.config,
        asked_for(sys.argv),
    )
except UserError as error:
    raise WorkflowError(str(error)) from None

# Jobs of one machine share its memory: no more run at once than it holds of what they ask for.
if workflow.local_exec and "mem_mb" not in workflow.global_resources:
    workflow.register_resource("mem_mb", psutil.virtual_memory().total // 2**20)

NAME = TIER.tier
WORK = f"results/{TIER.folder}"  # what jobs make
OUT = "results" if NAME == "micro" else WORK  # what people read
METHODS = list(TIER.methods)
TRAIN_SEEDS = TIER.train.seeds
RUNS = {"base": f"{WORK}/base"} | {
    f"{method}/{seed}": f"{WORK}/{method}/seed{seed}"
    for method in METHODS
    for seed in TRAIN_SEEDS
}

# What tokens are for is known in the micro world only.
ROLE_RESULTS = (
    [
        f"{OUT}/informativeness.csv",
        f"{OUT}/roles.csv",
        f"{OUT}/figures/informativeness.png",
    ]
    if TIER.world.name == "micro"
    else []
)

# Each job names its settings, since one run of paper.smk has jobs of many tiers; as a resource, and not a parameter,
# since a change to one method's must not rerun the others.
SETTINGS = export_settings(TIER, f"{WORK}/settings")


wildcard_constraints:
    method="[a-z][a-z0-9_]*",
    seed=r"\d+",
    trial=r"\d+",
    split="train|validation|test",
    row="[a-z][a-z0-9_]*",
    point=r"\d+",
    run=r"base|[a-z][a-z0-9_]*/seed\d+|tune/[a-z][a-z0-9_]*/trial\d+|sensitivity/point\d+",


rule all:
    default_target: True
    input:
        f"{OUT}/table1.csv",
        f"{OUT}/comparisons.csv",
        f"{OUT}/wallclock.csv",
        f"{OUT}/figures/accuracy_length.png",
        f"{OUT}/figures/training.png",
        f"{OUT}/figures/wallclock.png",
        f"{OUT}/lm_eval.csv",
        ROLE_RESULTS,


include: "rules/base.smk"
include: "rules/train.smk"
include: "rules/evaluate.smk"
include: "rules/tables.smk"
include: "rules/lm_eval.smk"


if ROLE_RESULTS:

    include: "rules/informativeness.smk"


include: "rules/tune.smk"
include: "rules/ablations.smk"
