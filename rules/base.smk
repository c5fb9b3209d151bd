# Settings, problems and the model that every method starts from.


rule settings:
    output:
        f"{WORK}/settings.yaml",
    params:
        content=json.dumps(TIER.model_dump(mode="json"), indent=2),  # JSON is YAML
    log:
        f"{WORK}/logs/settings.log",
    benchmark:
        f"{WORK}/benchmarks/settings.tsv"
    shell:
        "printf '%s\\n' {params.content:q} > {output} 2> {log}"


rule prepare:
    input:
        settings=ancient(rules.settings.output),
    output:
        directory(f"{WORK}/data"),
    params:
        world=TIER.world.model_dump(),
        seed=TIER.seed,
        code=code_digest("worlds"),
    log:
        f"{WORK}/logs/prepare.log",
    benchmark:
        f"{WORK}/benchmarks/prepare.tsv"
    shell:
        "{CLI} prepare --config {input.settings} --out {output} 2>&1 | tee {log}"


rule base:
    input:
        settings=ancient(rules.settings.output),
    output:
        directory(f"{WORK}/base/model"),
    params:
        model=TIER.model.model_dump(),
        world=TIER.world.model_dump(),
        seed=TIER.seed,
        code=code_digest("base"),
    log:
        f"{WORK}/logs/base.log",
    benchmark:
        f"{WORK}/benchmarks/base.tsv"
    threads: workflow.cores or 1
    shell:
        "{CLI} --threads {threads} warm-start --config {input.settings} --out {output} 2>&1 | tee {log}"
