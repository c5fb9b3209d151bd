# The search for hyperparameters: on the validation split, the same number of trials for every method, each trained under
# the budget of the table. The choice and its evidence go to configs/tuned/, and the table reads the choice from there.

TRIALS = [
    f"{method}/trial{trial}"
    for method in (METHODS if TIER.tune else [])
    for trial in range(len(search_space(method)))
]


rule tune_train:
    input:
        data=rules.prepare.output,
        base=rules.base.output,
    output:
        model=directory(f"{WORK}/tune/{{method}}/trial{{trial}}/model"),
        log=f"{WORK}/tune/{{method}}/trial{{trial}}/train.jsonl",
    log:
        f"{WORK}/logs/tune/{{method}}-{{trial}}.log",
    benchmark:
        f"{WORK}/benchmarks/tune_train/{{method}}-{{trial}}.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
        gpu=TIER.gpus,
        mem_mb=TIER.job.mem_mb,
        runtime=TIER.job.runtime,
    params:
        slice=lambda wildcards: TIER.training_slice(
            wildcards.method, int(wildcards.trial)
        ),
        code=lambda wildcards: code_digest("train", wildcards.method),
        seed=TIER.tune.seed if TIER.tune else 0,
        out=subpath(output.model, parent=True),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench --threads {threads} --gpus {resources.gpu} train --method {wildcards.method}"
        " --trial {wildcards.trial} --base {input.base} --data {input.data} --seed {params.seed}"
        " --out {params.out} 2>&1 | tee {log}"


rule tune_sample:
    input:
        data=rules.prepare.output,
        model=f"{WORK}/{{run}}/model",
    output:
        samples=f"{WORK}/{{run}}/validation/samples.parquet",
        timing=f"{WORK}/{{run}}/validation/timing.json",
    log:
        f"{WORK}/logs/tune_sample/{{run}}.log",
    benchmark:
        f"{WORK}/benchmarks/tune_sample/{{run}}.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
        gpu=min(TIER.gpus, 1),
        mem_mb=TIER.job.mem_mb,
        runtime=TIER.job.runtime,
    params:
        n=TIER.tune.n_samples if TIER.tune else 1,
        seed=TIER.tune.seed if TIER.tune else 0,
        evaluate=TIER.evaluate.model_dump(exclude={"ks", "seeds", "n_samples"}),
        code=code_digest("sample"),
        out=subpath(output.samples, parent=True),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench --threads {threads} --gpus {resources.gpu} sample --model {input.model} --data {input.data}"
        " --split validation --seed {params.seed} --n-samples {params.n} --out {params.out} 2>&1 | tee {log}"


rule tune_grade:
    input:
        data=rules.prepare.output,
        samples=rules.tune_sample.output.samples,
    output:
        f"{WORK}/{{run}}/validation/grades.parquet",
    log:
        f"{WORK}/logs/tune_grade/{{run}}.log",
    benchmark:
        f"{WORK}/benchmarks/tune_grade/{{run}}.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        code=code_digest("grade"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench grade --samples {input.samples} --data {input.data} --split validation"
        " --out {output} 2>&1 | tee {log}"


rule tune:
    input:
        base=f"{WORK}/base/validation/grades.parquet",
        trials=[f"{WORK}/tune/{trial}/validation/grades.parquet" for trial in TRIALS],
    log:
        f"{WORK}/logs/tune.log",
    benchmark:
        f"{WORK}/benchmarks/tune.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        trials=lambda wildcards, input: input.base.removesuffix(
            "base/validation/grades.parquet"
        )
        + "tune",
        out=f"configs/tuned/{NAME}.yaml",
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench tune --trials {params.trials} --base {input.base} --out {params.out} 2>&1 | tee {log}"
