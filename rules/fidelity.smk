# The released code, the released protocol, the published claims.

BENCH = "results/reference/bench/informativeness_micro.csv"


def departed_rows(wildcards):
    """Methods and the variants of them that depart as released code does."""
    rows = list(dict.fromkeys([*map(TIER.parent, FLOW.departed), *FLOW.departed]))
    return [f"{WORK}/summaries/{row}.json" for row in rows]


def candidates():
    """Runs that a protocol may choose among: training seeds, and IAPO's grid of weights where it was trained."""
    grid = {
        f"{TIER.parent(TIER.sensitivity.method)}/{100 + i}": f"{WORK}/{point}"
        for i, point in enumerate(FLOW.points)
        if Path(f"{WORK}/{point}/model").exists()
    }
    return {**RUNS, **grid}


def found(pattern):
    """Files of any tier that are there, but for the reference results."""
    paths = sorted(map(str, Path("results").glob(pattern)))
    return [path for path in paths if not path.startswith("results/reference/")]


rule fidelity_table:
    """Say what each departure of the released code does to credit and to trained models."""
    input:
        settings=lambda wildcards: FLOW.fidelity(),
        data=ancient(rules.prepare.output),
        base=rules.base.output,
        summaries=departed_rows,
    output:
        csv=report(f"{OUT}/fidelity.csv", category="Fidelity"),
        markdown=report(f"{OUT}/fidelity.md", category="Fidelity"),
        forms=multiext(f"{OUT}/fidelity", ".tex", ".html"),
    log:
        f"{WORK}/logs/fidelity.log",
    benchmark:
        f"{WORK}/benchmarks/fidelity.tsv"
    conda:
        "../configs/environment.yaml"
    threads: REQUESTS["sample"].cpus
    resources:
        **REQUESTS["sample"].resources,
    params:
        summaries=each_summary,
    shell:
        run_gpu("sample")
        + "fidelity --settings {input.settings} --base {input.base} --data {input.data}"
        " {params.summaries} --out {output.csv}"


rule fidelity:
    """The released code against the equations; train three seeds with --config train='{seeds: 3}'."""
    input:
        rules.fidelity_table.output.csv,


rule protocol_table:
    """Measure the same completions by the released protocol and by ours."""
    input:
        settings=lambda wildcards: FLOW.protocol(),
        data=ancient(rules.prepare.output),
        models=[f"{folder}/model" for folder in candidates().values()],
        samples=[f"{folder}/test/samples.parquet" for folder in candidates().values()],
        grades=[f"{folder}/test/grades.parquet" for folder in candidates().values()],
    output:
        csv=report(f"{OUT}/protocol.csv", category="Fidelity"),
        markdown=report(f"{OUT}/protocol.md", category="Fidelity"),
        forms=multiext(f"{OUT}/protocol", ".tex", ".html"),
    log:
        f"{WORK}/logs/protocol.log",
    benchmark:
        f"{WORK}/benchmarks/protocol.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        runs=named(candidates()),
    shell:
        RUN + "protocol --settings {input.settings} {params.runs} --data {input.data}"
        " --out {output.csv}"


rule protocol:
    """What the protocol of evaluation does to a ranking."""
    input:
        rules.protocol_table.output.csv,


# Judges what there is: the tables of any tier that were made before.
rule claims:
    """Judge the published claims by their own numbers, and by what was measured."""
    input:
        code=lambda wildcards: FLOW.artefact("claims"),
        ledger="configs/claims.yaml",
        published="results/published/table1.csv",
        second_hand="results/published/second_hand.csv",
        bench=[path for path in [BENCH] if Path(path).exists()],
        summaries=lambda wildcards: found("**/summaries/*.json"),
        wallclocks=lambda wildcards: found("**/wallclock.csv"),
    output:
        csv=report("results/claims.csv", category="Claims"),
        markdown=report("results/claims.md", category="Claims"),
        forms=multiext("results/claims", ".tex", ".html"),
    log:
        f"{WORK}/logs/claims.log",
    benchmark:
        f"{WORK}/benchmarks/claims.tsv"
    conda:
        "../configs/environment.yaml"
    params:
        summaries=each_summary,
        bench=lambda wildcards, input: [f"--bench {path}" for path in input.bench],
        wallclocks=lambda wildcards, input: [
            f"--wallclock {path}" for path in input.wallclocks
        ],
    shell:
        RUN + "claims --ledger {input.ledger} --published {input.published}"
        " --second-hand {input.second_hand} {params.bench} {params.summaries}"
        " {params.wallclocks} --out {output.csv}"
