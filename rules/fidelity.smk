# The released code, the released protocol, the published claims.

BENCH = "results/reference/bench/informativeness_micro.csv"


rule fidelity_table:
    """Measure the effect of each departure of the released code on credit and trained models."""
    input:
        **with_problems("fidelity"),
        base=rules.base.output,
        summaries=departed_rows,
    output:
        **table_files("fidelity", "Fidelity"),
    threads: REQUESTS["sample"].cpus
    resources:
        **REQUESTS["sample"].resources,
    params:
        summaries=each("summary", "summaries"),
    shell:
        run(
            "fidelity --settings {input.settings} --base {input.base} --data {input.data}"
            " {params.summaries} --out {output.csv}",
            gpus=True,
        )


rule fidelity:
    """The released code against the equations; train three seeds with --config train='{seeds: 3}'."""
    input:
        rules.fidelity_table.output.csv,


rule protocol_table:
    """Measure the same completions by the released protocol and by ours."""
    input:
        **with_problems("protocol"),
        models=[f"{folder}/model" for folder in candidates().values()],
        samples=[f"{folder}/test/samples.parquet" for folder in candidates().values()],
        grades=[f"{folder}/test/grades.parquet" for folder in candidates().values()],
    output:
        **table_files("protocol", "Fidelity"),
    params:
        runs=named(candidates()),
    shell:
        run(
            "protocol --settings {input.settings} {params.runs} --data {input.data}"
            " --out {output.csv}",
        )


rule protocol:
    """The effect of the evaluation protocol on a ranking."""
    input:
        rules.protocol_table.output.csv,


# Reads the existing tables of any tier, and makes none.
rule claims:
    """Judge the published claims by their own numbers, and by what was measured."""
    input:
        code=settings("claims"),
        ledger="configs/claims.yaml",
        published="results/published/table1.csv",
        second_hand="results/published/second_hand.csv",
        bench=[path for path in [BENCH] if Path(path).exists()],
        summaries=lambda wildcards: found("**/summaries/*.json"),
        wallclocks=lambda wildcards: found("**/wallclock.csv"),
    output:
        **table_files("claims", "Claims", folder="results"),
    params:
        summaries=each("summary", "summaries"),
        bench=each("bench", "bench"),
        wallclocks=each("wallclock", "wallclocks"),
    shell:
        run(
            "claims --ledger {input.ledger} --published {input.published}"
            " --second-hand {input.second_hand} {params.bench} {params.summaries}"
            " {params.wallclocks} --out {output.csv}",
        )
