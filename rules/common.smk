# Helpers that the rules share: files by kind, repeated options, commands. No rules here.


def run(command, gpus=False):
    """A command with its log and threads and, with `gpus`, the GPUs that it leases. File names may contain spaces."""
    lease = " --gpus {resources.lease}" if gpus else ""
    quoted = re.sub(r"{(\w+(?:\.\w+)?)}", r"{\1:q}", f"--log {{log}} {command}")
    return f"python -m iapo_bench --threads {{threads}}{lease} {quoted}"


def settings(job, *names):
    """A job's settings file, which depends on the wildcards `names`."""
    return lambda wildcards: FLOW.settings(
        job, *(getattr(wildcards, name) for name in names)
    )


def with_problems(job, *names):
    """A job's settings file, and the problems that it reads: of a split such as `test`, or `also/math500/test` of
    another dataset. A current job's problems are `ancient`, so that rewriting equal ones does not make it stale. A stale
    job's are not: Snakemake skips a job whose ancient input is being remade."""
    path = settings(job, *names)

    def problems(wildcards):
        place = Path(WORK, getattr(wildcards, "split", "test")).parent / "data"
        return ancient(str(place)) if FLOW.files.ran(path(wildcards)) else str(place)

    return {"settings": path, "data": problems}


def reported(name, form, category, caption, folder=OUT):
    """A file that the report holds, with its caption."""
    return report(
        f"{folder}/{name}.{form}",
        category=category,
        caption=f"captions/{caption}.rst",
        labels={"what": Path(name).name, "form": form},
    )


def table_files(name, category, folder=OUT, caption=None):
    """A table in its four forms."""
    forms = ("csv", "md", "html")
    shown = {
        form: reported(name, form, category, caption or name, folder) for form in forms
    }
    return {**shown, "tex": f"{folder}/{name}.tex"}


def figure_files(name, category, caption=None):
    """A figure in its two forms."""
    png = reported(f"figures/{name}", "png", category, caption or name)
    return {"png": png, "svg": f"{OUT}/figures/{name}.svg"}


def zoo_files(end):
    """Summaries of the base and of every method, as soon as the settings of all methods are chosen."""

    def files(wildcards):
        if FLOW.untuned:
            checkpoints.zoo_choice.get()
        return [f"{WORK}/summaries/{row}.{end}" for row in ["base", *FLOW.zoo]]

    return files


def summaries(rows):
    """Summaries of rows, and the counts by problem beside them."""
    return {
        "summaries": [f"{WORK}/summaries/{row}.json" for row in rows],
        "counts": [f"{WORK}/summaries/{row}.parquet" for row in rows],
    }


def transferred():
    """Summaries of the base and all methods on the other datasets that they are measured on."""
    return [
        f"also/{dataset}/{row}"
        for dataset in TIER.also
        for row in ["base", *FLOW.methods]
    ]


def measured_logs(wildcards):
    """The training logs behind a row; none for a row that was not trained."""
    trained = wildcards.row not in ["base", *TIER.measured]
    return [
        f"{folder}/train.jsonl" for folder in FLOW.folders(wildcards.row) if trained
    ]


def measured_seeds(wildcards):
    """The training seeds behind a row, in the order of its grades."""
    base = wildcards.row == "base"
    seeds = [0] if base else TIER.train_seeds(wildcards.row)
    return [f"--train-seed={seed}" for seed in seeds]


def named(runs):
    """The `--run` options of a command, one for each run."""
    return [f"--run={name}={folder}" for name, folder in runs.items()]


def each(option, name):
    """An option for each of the input files `name`."""
    return lambda wildcards, input: [
        f"--{option}={path}" for path in getattr(input, name)
    ]


def departed_rows(wildcards):
    """Summaries of the variants that depart as released code does, and of their methods."""
    rows = list(dict.fromkeys([*map(TIER.parent, FLOW.departed), *FLOW.departed]))
    return [f"{WORK}/summaries/{row}.json" for row in rows]


def candidates():
    """Runs that a protocol may choose among: training seeds, and the points of IAPO's grid that were trained."""
    grid = {
        f"{TIER.parent(TIER.sensitivity.method)}/point{i}": f"{WORK}/{point}"
        for i, point in enumerate(FLOW.points)
        if Path(f"{WORK}/{point}/model").exists()
    }
    return {**RUNS, **grid}


def found(pattern):
    """Existing files of any tier, except the reference results."""
    paths = sorted(map(str, Path("results").glob(pattern)))
    return [path for path in paths if not path.startswith("results/reference/")]
