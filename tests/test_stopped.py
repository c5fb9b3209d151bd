"""What a command says as it is stopped, and that it then goes on."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from stages import RUN, iapo_bench, lines
from test_trainer import make_trainer, untimed  # noqa: F401

from iapo_bench.errors import explain as explain_error


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_that_comes_within_a_destructor_is_not_lost(name):
    """Python swallows what is raised there."""
    script = f"""
import os, signal, sys, time
signal.signal(signal.{name}, signal.default_int_handler if "{name}" == "SIGINT" else signal.SIG_DFL)  # not as inherited
from iapo_bench import cli
class Held:
    def __del__(self):
        os.kill(os.getpid(), signal.{name})
        time.sleep(0.1)
@cli.cli.command()
def hold():
    Held()
    time.sleep(60)
sys.argv = ["iapo-bench", "hold"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    said = f"iapo-bench: stopped by {name}; the same command goes on where it stopped\n"
    assert done.stderr.removeprefix("\n") == said
    assert done.returncode == 128 + signal.Signals[name]


def test_a_system_error_is_a_lack_of_memory_only_under_a_limit():
    error, before = SystemError("error return without exception set"), resource.getrlimit(resource.RLIMIT_AS)
    assert (explain_error(error) is None) == (before[0] == resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_AS, (2**60, before[1]))
    try:
        assert str(explain_error(error)).startswith("out of memory (error return without exception set)")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_too_little_memory_to_import_is_one_line(made, tmp_path):
    files = ("--base", made / "base" / "model", "--data", made / "data", "--out", tmp_path / "out")
    # In 0.8 GB OpenBLAS, while scipy is imported, asks again and again for the memory that it cannot have.
    for limit in (400_000_000, 800_000_000):
        done = iapo_bench("train", "--config", "smoke", "--method", "grpo", *files, limit=(resource.RLIMIT_AS, limit))
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert line.startswith("iapo-bench: out of memory ("), done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("bar", ["bar = tqdm(total=8, file=sys.stderr); bar.kept = bar; stop()", "bar = Half()"])
def test_a_stop_is_a_line_of_its_own_beside_a_bar_that_is_open_or_half_built(bar):
    code = f"""
import os, signal, sys, time
from tqdm import tqdm
from iapo_bench.cli import cli, main
def stop():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
class Half(tqdm):
    def __init__(self):
        self.disable = False
        stop()
@cli.command()
def wait():
    {bar}
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "wait"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 128 + signal.SIGTERM
    assert lines(done) == ["iapo-bench: stopped by SIGTERM; the same command goes on where it stopped"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sample", "grade", "lm-eval"])
def test_a_stage_keeps_its_finished_parts_through_every_signal(made, tmp_path, stage):
    """KILL, TERM, INT and HUP, each in the middle of a process: no finished part is made again, and the result is that
    of an uninterrupted one."""
    many = ("--config", "smoke", "--set", "world.options.n_test=240", "--set", "evaluate.seeds=[42]")
    data, model = tmp_path / "data", ("--model", made / "base" / "model")
    assert iapo_bench("prepare", *many, "--out", data).returncode == 0
    samples = ("--samples", tmp_path / "made" / "samples.parquet")
    if stage == "grade":
        assert iapo_bench("sample", *many, *model, "--data", data, "--out", tmp_path / "made").returncode == 0
    module = {"sample": "sample", "grade": "grade", "lm-eval": "lm_evaluation"}[stage]
    small = (
        f"from iapo_bench.evaluate import {module} as stage; stage.PART = 8; from iapo_bench.cli import main; main()"
    )
    out = tmp_path / "stopped"

    def command(out: Path) -> list[str]:
        given = (*samples, "--out", out / "results.parquet") if stage == "grade" else (*model, "--out", out)
        return [sys.executable, "-c", small, stage, *map(str, (*many, "--data", data, *given))]

    def parts() -> dict[str, int]:
        return {path.name: path.stat().st_ino for path in out.glob("*.resume/*-*.json")}

    subprocess.run(command(tmp_path / "whole"), check=True, capture_output=True, timeout=400)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        before = parts()
        process = subprocess.Popen(command(out), stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
        while process.poll() is None and len(parts()) < len(before) + 2:
            time.sleep(0.002)
        process.send_signal(number)
        _, err = process.communicate(timeout=100)
        name = signal.Signals(number).name
        said = [line for line in err.splitlines() if line.startswith(("iapo-bench:", "Traceback"))]
        told = [] if number == signal.SIGKILL else [f"iapo-bench: stopped by {name}; the same command goes on where it"]
        assert [line.removesuffix(" stopped") for line in said] == told, err
        assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
        assert len(parts()) >= len(before) + 2
        assert before.items() <= parts().items(), "a finished part was made again"
        assert [path.name for path in out.iterdir()] == [path.name for path in out.glob("*.resume")]
    subprocess.run(command(out), check=True, capture_output=True, timeout=400)
    whole, made_on = ({path.name: path for path in folder.iterdir()} for folder in (tmp_path / "whole", out))
    assert whole.keys() == made_on.keys()
    for name in whole.keys() - {"timing.json"}:
        assert whole[name].read_bytes() == made_on[name].read_bytes(), name


@pytest.mark.slow
def test_training_goes_on_after_every_way_to_stop_it(made, tmp_path):
    """Signals, a full disk, no memory: a line each, and in the end the weights of an uninterrupted run."""
    command = ["train", "--config", "smoke", "--method", "grpo", "--base", made / "base" / "model"]
    command += ["--data", made / "data", "--set", "train.completions=3200", "--set", "train.checkpoint_every=1"]
    assert iapo_bench(*command, "--out", tmp_path / "whole").returncode == 0
    out = tmp_path / "out"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        before = len((out / "train.jsonl").read_text().splitlines()) if out.exists() else 0
        process = subprocess.Popen(
            [*RUN, *map(str, command), "--out", str(out)], stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            rows = (out / "train.jsonl").read_text().splitlines() if (out / "train.jsonl").exists() else []
            if len(rows) >= before + 2 and (out / "resume" / "state").exists():
                break
            time.sleep(0.02)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        said = [line for line in err.splitlines() if line.startswith(("iapo-bench:", "Traceback"))]
        if number == signal.SIGKILL:
            assert (process.returncode, said) == (-number, [])
        else:
            name = signal.Signals(number).name
            assert said == [f"iapo-bench: stopped by {name}; the same command goes on where it stopped"]
            assert process.returncode == 128 + number
    for limit in ((resource.RLIMIT_FSIZE, 30_000), (resource.RLIMIT_AS, 700_000_000)):
        stopped = iapo_bench(*command, "--out", out, limit=limit)
        assert stopped.returncode, limit
        assert len(lines(stopped)) <= 1, stopped.stderr
        assert "Traceback" not in stopped.stderr
    assert iapo_bench(*command, "--out", out).returncode == 0
    weights = "model/model.safetensors"
    assert (out / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    logs = [
        [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
        for folder in (out, tmp_path / "whole")
    ]
    assert untimed(logs[0]) == untimed(logs[1])
    assert sorted(path.name for path in out.iterdir()) == ["model", "provenance.json", "train.jsonl"]


@pytest.mark.slow
def test_the_page_of_real_models_makes_a_table_under_a_time_limit(tmp_path):
    page = (Path(__file__).parent.parent / "docs" / "real-models.md").read_text()
    blocks = [block.split("```")[0] for block in page.split("```bash\n")[1:]]
    table = next(block for block in blocks if block.startswith("# table.sh"))
    loop = next(block for block in blocks if "until timeout" in block)
    (tmp_path / "table.sh").write_text(table)
    (tmp_path / "loop.sh").write_text(f"set -u\n{loop}")
    given = {"TIER": "smoke", "METHODS": "grpo", "OUT": str(tmp_path / "out"), "LIMIT": "25"}
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(["bash", "loop.sh"], cwd=tmp_path, env={**os.environ, **given, "PATH": path}, timeout=900)
    assert done.returncode == 0
    rows = (tmp_path / "out" / "table1.csv").read_text().splitlines()
    assert len(rows) == 3
