# What tokens are for, and what scores say of them: the micro world only, where the role of every token is known.


rule token_roles:
    input:
        data=rules.prepare.output,
        model=f"{WORK}/{{run}}/model",
        samples=rules.sample.output.samples,
    output:
        f"{WORK}/{{run}}/test/token_roles.parquet",
    log:
        f"{WORK}/logs/token_roles/{{run}}.log",
    benchmark:
        f"{WORK}/benchmarks/token_roles/{{run}}.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
        gpu=min(TIER.gpus, 1),
        mem_mb=TIER.job.mem_mb,
        runtime=TIER.job.runtime,
    params:
        temperature=TIER.train.temperature,
        code=code_digest("roles"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench --threads {threads} --gpus {resources.gpu} token-roles --model {input.model} --samples {input.samples}"
        " --data {input.data} --out {output} 2>&1 | tee {log}"


rule role_tables:
    input:
        tokens=[f"{folder}/test/token_roles.parquet" for folder in RUNS.values()],
        samples=[f"{folder}/test/samples.parquet" for folder in RUNS.values()],
    output:
        csv=report(f"{OUT}/informativeness.csv", category="Informativeness"),
        roles=report(f"{OUT}/roles.csv", category="Informativeness"),
        png=report(f"{OUT}/figures/informativeness.png", category="Informativeness"),
        svg=f"{OUT}/figures/informativeness.svg",
    log:
        f"{WORK}/logs/role_tables.log",
    benchmark:
        f"{WORK}/benchmarks/role_tables.tsv"
    conda:
        "../configs/environment.yaml"
    resources:
        settings=SETTINGS,
    params:
        runs=[f"--run {name}={folder}" for name, folder in RUNS.items()],
        labels=[TIER.model.name, TIER.world.name],
        code=code_digest("role_tables"),
        stem=lambda wildcards, output: output.png.removesuffix(".png"),
    shell:
        "IAPO_BENCH_CONFIG={resources.settings} python -m iapo_bench role-tables {params.runs} --out {output.csv} --roles {output.roles}"
        " --figure {params.stem} 2>&1 | tee {log}"
