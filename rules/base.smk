# Problems and the model that every method starts from.


rule prepare:
    output:
        directory(f"{WORK}/data"),
    log:
        f"{WORK}/logs/prepare.log",
    benchmark:
        f"{WORK}/benchmarks/prepare.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        world=TIER.world.model_dump(),
        seed=TIER.seed,
        code=code_digest("worlds"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench prepare --out {output} 2>&1 | tee {log}"


rule base:
    output:
        directory(f"{WORK}/base/model"),
    log:
        f"{WORK}/logs/base.log",
    benchmark:
        f"{WORK}/benchmarks/base.tsv"
    conda:
        "../configs/environment.yaml"
    threads: workflow.cores or 1
    resources:
        settings=SETTINGS,
        gpu=min(TIER.gpus, 1) if TIER.model.warm_start else 0,
        mem_mb=TIER.job.mem_mb,
        runtime=TIER.job.runtime,
    params:
        model=TIER.model.model_dump(),
        world=TIER.world.model_dump(),
        seed=TIER.seed,
        code=code_digest("base"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench --threads {threads} --gpus {resources.gpu} warm-start --out {output} 2>&1 | tee {log}"
