# Every model and dataset of the paper in one run: the Snakefile once for each, with its own settings and results.
#
#   snakemake -s paper.smk -n                                                 what would run, and how many jobs
#   snakemake -s paper.smk --cores all --config tiers='[qwen-0.5b]'           one model, its three datasets
#   snakemake -s paper.smk --cores all --config evaluate='{n_samples: 64}'    a setting for all
import sys

sys.path.insert(0, workflow.basedir)
from iapo_bench.config.asked import paper_cells
from iapo_bench.errors import UserError

try:
    CELLS = paper_cells(config)
except UserError as error:
    raise WorkflowError(str(error)) from None

for cell, settings in CELLS.items():

    module:
        name: cell
        snakefile:
            "Snakefile"
        config:
            settings

    use rule * from cell as cell*


rule paper:
    default_target: True
    input:
        [getattr(rules, f"{cell}all").input for cell in CELLS],
