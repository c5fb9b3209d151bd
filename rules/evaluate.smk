# Sampling needs the accelerator; grading and measuring never do.


rule sample:
    """Sample completions of a run's model for every problem of a split."""
    input:
        **with_problems("sample", "run", "split"),
        model=f"{WORK}/{{run}}/model",
    output:
        samples=f"{WORK}/{{run}}/{{split}}/samples.parquet",
        timing=f"{WORK}/{{run}}/{{split}}/timing.json",
    conda:
        ENGINES
    threads: REQUESTS["sample"].cpus
    resources:
        **REQUESTS["sample"].resources,
    params:
        out=subpath(output.samples, parent=True),
    shell:
        run(
            "sample --settings {input.settings} --model {input.model}"
            " --data {input.data} --out {params.out}",
            gpus=True,
        )


rule grade:
    """Judge every sample of a run."""
    input:
        **with_problems("grade", "run", "split"),
        samples=rules.sample.output.samples,
    output:
        f"{WORK}/{{run}}/{{split}}/grades.parquet",
    threads: REQUESTS["grade"].cpus
    resources:
        **REQUESTS["grade"].resources,
    shell:
        run(
            "grade --settings {input.settings} --samples {input.samples}"
            " --data {input.data} --out {output}",
        )


rule lm_eval:
    """Measure a run's model with lm-eval, greedily."""
    input:
        **with_problems("lm_eval", "run"),
        model=f"{WORK}/{{run}}/model",
    output:
        scores=f"{WORK}/{{run}}/lm_eval/scores.json",
        results=f"{WORK}/{{run}}/lm_eval/results.parquet",
    conda:
        ENGINES
    threads: REQUESTS["lm_eval"].cpus
    resources:
        **REQUESTS["lm_eval"].resources,
    params:
        out=subpath(output.scores, parent=True),
    shell:
        run(
            "lm-eval --settings {input.settings} --model {input.model}"
            " --data {input.data} --out {params.out}",
            gpus=True,
        )
