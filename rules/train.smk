# Problems, the base, and a training job for each run: of the table, the search, the ablations, the grid.


rule prepare:
    """Write the problems of every split, golds checked."""
    input:
        settings=settings("prepare"),
    output:
        directory(f"{WORK}/data"),
    threads: REQUESTS["prepare"].cpus
    resources:
        **REQUESTS["prepare"].resources,
    shell:
        run("prepare --settings {input.settings} --out {output}")


rule base:
    """Make the model that every method starts from."""
    input:
        settings=settings("base"),
    output:
        directory(f"{WORK}/base/model"),
    threads: REQUESTS["base"].cpus
    resources:
        **REQUESTS["base"].resources,
    shell:
        run(
            "base --settings {input.settings} --out {output}",
            gpus=True,
        )


rule lm_eval_data:
    """Put the datasets of lm-eval's own tasks into the hub's cache."""
    output:
        touch(f"{WORK}/lm_eval_data"),
    params:
        tasks=[task for task in TIER.lm_eval.tasks if task != f"iapo_{TIER.world.name}"],
    shell:
        "python -m lm_eval run --model dummy --limit 1 --tasks {params.tasks} > {log} 2>&1"


rule fetch:
    """Everything that needs the hub: run it where the hub can be reached, such as a cluster's login node."""
    input:
        rules.prepare.output,
        rules.base.output,
        [f"{WORK}/also/{name}/data" for name in TIER.also],
        [f"{WORK}/{name}/seed0/model" for name in TIER.measured],
        rules.lm_eval_data.output if TIER.lm_eval.tasks else [],


# A row with a checkpoint is measured and not trained.
MEASURED = "|".join(map(re.escape, TIER.measured)) or "(?!)"


rule checkpoint:
    """Fetch a model that is measured and not trained."""
    input:
        settings=settings("checkpoint", "measured"),
    output:
        directory(f"{WORK}/{{measured}}/seed0/model"),
    wildcard_constraints:
        measured=MEASURED,
    threads: REQUESTS["base"].cpus
    resources:
        mem_mb=REQUESTS["base"].mem_mb,
        runtime=REQUESTS["base"].runtime,
        nodes=1,
    shell:
        run("checkpoint --settings {input.settings} --out {output}")


# The problems' content is part of the settings' name: new files with the same content make nothing stale.
rule train:
    """Train one run: a method and seed, a trial of the search, or a point of the grid."""
    input:
        **with_problems("train", "run"),
        base=rules.base.output,
    output:
        model=directory(f"{WORK}/{{run}}/model"),
        log=f"{WORK}/{{run}}/train.jsonl",
    wildcard_constraints:
        run=rf"(?!(?:{MEASURED})/)(?:tune/[^/]+/trial\d+|sensitivity/point\d+|[^/]+/seed\d+)",
    conda:
        ENGINES
    threads: REQUESTS["train"].cpus
    resources:
        **REQUESTS["train"].resources,
    params:
        out=subpath(output.model, parent=True),
    shell:
        run(
            "train --settings {input.settings} --base {input.base}"
            " --data {input.data} --out {params.out}",
            gpus=True,
        )
