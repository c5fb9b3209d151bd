"""The warm start of fetched models: what is taught, what is not, and that the loss is the same however it is split."""

import json
from pathlib import Path

import pytest
import torch
from project_copy import copy_project, snakemake
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from iapo_bench.config.tier import TierConfig
from iapo_bench.config.tier_file import read_tier
from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import build_micro, eos_ids, load_model, load_tokenizer, save_model
from iapo_bench.rollout import Sampling
from iapo_bench.rollout.load import make_engine
from iapo_bench.train import base as base_stage
from iapo_bench.train import sft
from iapo_bench.train.sft import SFT, backward, fine_tune, mean_loss
from iapo_bench.worlds import read_problems
from iapo_bench.worlds.datasets.gsm8k import VALIDATION
from iapo_bench.worlds.datasets.micro import build_tokenizer
from iapo_bench.worlds.grading import is_formatted
from iapo_bench.worlds.load import load_world
from iapo_bench.worlds.prepare import prepare

pytestmark = pytest.mark.usefixtures("small_datasets")

N_TRAIN = VALIDATION + 41
EXAMPLES = [([5, 6, 7], [8, 9]), ([5], [10, 11, 12, 13, 14, 1]), ([9, 9, 9, 9], [3]), ([7, 8], [15, 16, 1])]


def row(n: int, written: str = "= ?") -> dict:
    return {"question": f"9 + {n} {written}", "answer": f"so 9 + {n} = <<9+{n}={9 + n}>> {9 + n} ;\n#### {9 + n}"}


@pytest.fixture
def data_dir(tmp_path) -> Path:
    """GSM8K in the micro world's words. Some problems come twice, but for a full stop, in different splits."""
    folder = tmp_path / "data"
    folder.mkdir()
    twins = [row(n, "= ? .") for n in range(47)]
    for split, rows in {
        "train": [*twins, *(row(n) for n in range(7, N_TRAIN - 40))],
        "test": [row(n) for n in range(7)],
    }.items():
        (folder / f"gsm8k_{split}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


@pytest.fixture
def source(tmp_path) -> Path:
    """An untrained model that can chat."""
    tokenizer: PreTrainedTokenizerFast = build_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} ; {% endfor %}"
    save_model(build_micro(tokenizer, hidden=32, layers=2, heads=4, seed=1), tokenizer, tmp_path / "source")
    return tmp_path / "source"


def tier(source: Path, data_dir: Path, **changes) -> TierConfig:
    sft = {"steps": 60, "batch_size": 8, "lr": 1e-2, "micro_batch_tokens": 1024}
    model = {"source": str(source), "sft": {**sft, **changes.pop("sft", {})}}
    return read_tier("smollm2", {"model": model, "world": {"data_dir": str(data_dir), **changes.pop("world", {})}})


def assert_nothing_written(out: Path) -> None:
    assert not list(out.parent.glob(f"*{out.name}*"))


def test_a_schooled_model_keeps_the_format(tmp_path, source, data_dir):
    settings, out = tier(source, data_dir), tmp_path / "base"
    base_stage.make_base(settings.base_job(), out)
    prepare(settings.prepare_job(), tmp_path / "prepared")
    notes = json.loads((out / "training.json").read_text())
    assert notes["sft"] == {"steps": 60, "batch_size": 8, "lr": 1e-2, "micro_batch_tokens": 1024, "seed": 0}
    assert notes["loss"][-1]["loss"] < 0.5 * notes["loss"][0]["loss"]
    held_out = notes["held_out_loss"]
    assert held_out["problems"] == base_stage.HELD_OUT_PROBLEMS
    assert held_out["after"] < 0.5 * held_out["before"]
    provenance = json.loads((out / "provenance.json").read_text())
    repeats = json.loads((tmp_path / "prepared" / "provenance.json").read_text())["removed_from_train"]
    assert repeats > 0
    assert provenance["problems"] == {"taught": N_TRAIN - VALIDATION - repeats, "held_out": held_out["problems"]}
    assert provenance["config"]["model"]["source"] == str(source)
    assert list(tmp_path.glob(".base*")) == []

    texts = {}
    for name in ("source", "base"):
        model, tokenizer = load_model(tmp_path / name), load_tokenizer(tmp_path / name)
        tokenizer.chat_template = load_tokenizer(source).chat_template
        world = load_world(settings.world, 0)
        prompts = [world.encode_prompt(p, tokenizer) for p in read_problems(tmp_path / "prepared" / "train.jsonl")[:8]]
        engine = make_engine("transformers", tmp_path / name, model, width=200, batch_size=8, gpu_memory=0.5)
        sampling = Sampling(
            max_tokens=24, eos_ids=eos_ids(model, tokenizer), samples_per_prompt=1, temperature=0, seed=0
        )
        ids = [completion.token_ids for completion in engine.generate(prompts, sampling)]
        texts[name] = tokenizer.batch_decode([list(i) for i in ids], skip_special_tokens=True)
    assert not any(map(is_formatted, texts["source"]))
    assert all(map(is_formatted, texts["base"]))


@pytest.mark.parametrize("splits", ["honest", "published"])
def test_only_training_problems_are_taught_and_no_test_problem_is_read(tmp_path, monkeypatch, source, data_dir, splits):
    """Not even those that only overlap; nor does the loss that is watched see a test problem."""
    settings = tier(source, data_dir, sft={"steps": 2}, world={"splits": splits})
    seen: dict[str, list] = {"fine_tune": [], "mean_loss": []}

    def spy(name):
        real = getattr(base_stage, name)

        def call(model, examples, *arguments, **options):
            seen[name] += examples
            return real(model, examples, *arguments, **options)

        monkeypatch.setattr(base_stage, name, call)

    spy("fine_tune")
    spy("mean_loss")
    base_stage.make_base(settings.base_job(), tmp_path / "base")
    prepare(tier(source, data_dir).prepare_job(), tmp_path / "prepared")
    tokenizer = load_tokenizer(source)
    world = load_world(settings.world, 0)
    prompts = {
        split: [world.encode_prompt(p, tokenizer) for p in read_problems(tmp_path / "prepared" / f"{split}.jsonl")]
        for split in ("train", "validation", "test")
    }
    taught, watched = ([prompt for prompt, _ in seen[name]] for name in ("fine_tune", "mean_loss"))
    if splits == "honest":
        assert taught == prompts["train"]
        assert watched == 2 * prompts["validation"][: base_stage.HELD_OUT_PROBLEMS]
    else:  # validation is the test split there, training the whole official one
        assert len(taught) == N_TRAIN - len(prompts["test"])
        assert not [prompt for prompt in taught if prompt in prompts["test"]]
        assert watched == []
    assert all(completion[-1] == tokenizer.eos_token_id for _, completion in seen["fine_tune"])


def reference_loss(model: PreTrainedModel, examples) -> torch.Tensor:
    """A lesson at a time, without padding: the mean of -log p over the completions' tokens alone."""
    losses = []
    for prompt, completion in examples:
        logp = model(input_ids=torch.tensor([prompt + completion])).logits[0].log_softmax(dim=-1)
        losses += [-logp[len(prompt) + i - 1, token] for i, token in enumerate(completion)]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("micro_batch_tokens", [1, 12, 10_000])
@pytest.mark.parametrize("chunk_logits", [1, 200, 2**26])
def test_loss_and_gradient_are_those_of_completion_tokens_however_they_are_split(
    any_model, monkeypatch, micro_batch_tokens, chunk_logits
):
    monkeypatch.setattr(sft, "CHUNK_LOGITS", chunk_logits)
    expected = reference_loss(any_model, EXAMPLES)
    expected.backward()
    gradients = {name: weight.grad for name, weight in any_model.named_parameters()}
    any_model.zero_grad()
    loss = backward(any_model, EXAMPLES, pad_id=0, micro_batch_tokens=micro_batch_tokens)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for name, weight in any_model.named_parameters():
        torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    watched = mean_loss(any_model, EXAMPLES, pad_id=0, micro_batch_tokens=micro_batch_tokens)
    assert watched == pytest.approx(expected.item(), rel=1e-5)


def test_logits_are_never_there_all_at_once(model, monkeypatch):
    monkeypatch.setattr(sft, "CHUNK_LOGITS", 2 * model.config.vocab_size)
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda _, given, __: rows.append(len(given[0])))
    backward(model, EXAMPLES, pad_id=0, micro_batch_tokens=10_000)
    assert max(rows) <= 2
    assert sum(rows) == 2 * sum(len(completion) for _, completion in EXAMPLES)  # once more in the backward pass


def test_every_epoch_sees_every_lesson(model, monkeypatch):
    seen = []
    monkeypatch.setattr(sft, "backward", lambda _, examples, **__: seen.extend(examples) or 0.0)
    fine_tune(model, EXAMPLES, SFT(steps=6, batch_size=2), pad_id=0)
    assert all(seen.count(lesson) == 3 for lesson in EXAMPLES)


def test_bfloat16_weights_are_taught_by_steps_below_their_rounding(model):
    """At this rate no step alone could move a weight above 0.01: half a unit of its last place is 3e-5."""
    model.bfloat16()
    before = {name: weight.clone() for name, weight in model.named_parameters() if "proj" in name}
    fine_tune(model, EXAMPLES, SFT(steps=200, batch_size=4, lr=5e-6), pad_id=0)
    weights = dict(model.named_parameters())
    moved = torch.cat([(weights[name] != weight)[weight.abs() > 0.01] for name, weight in before.items()])
    assert model.dtype == torch.bfloat16
    assert moved.float().mean() > 0.5


def test_without_solutions_there_is_one_line(tmp_path, source):
    rows = [{"problem": f"Find ${n}^2$.", "answer": str(n * n)} for n in range(400)]
    for file, name in (("dapo_math_17k", "dapo"), ("math500", "math500")):
        (tmp_path / f"{file}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
        with pytest.raises(UserError, match=f"^{name} has no worked solution of .*: set model.sft to null$"):
            base_stage.make_base(tier(source, tmp_path, world={"name": name}).base_job(), tmp_path / "out" / "base")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"sft": {"step": 2}}, "unknown option of model.sft 'step': did you mean 'steps'"),
        ({"sft": {"hidden": 64}}, "unknown option of model.sft 'hidden'"),
        ({"world": {"name": "micro"}}, "cannot fine-tune a fetched model in the micro world"),
    ],
)
def test_a_sft_that_cannot_be_is_refused(tmp_path, source, data_dir, changes, complaint):
    with pytest.raises(UserError, match=complaint):
        base_stage.make_base(tier(source, data_dir, **changes).base_job(), tmp_path / "base")
    assert_nothing_written(tmp_path / "base")


def test_whole_numbers_of_yaml_are_whole():
    settings = SFT(steps=1e3)  # type: ignore[arg-type]
    assert (type(settings.steps), settings.steps) == (int, 1000)


def test_a_solution_longer_than_the_context_is_named(tmp_path, source, data_dir):
    path = data_dir / "gsm8k_train.jsonl"
    path.write_text(path.read_text().replace('"answer": "', '"answer": "' + 200 * "so "))
    with pytest.raises(
        UserError, match=r"problem 'gsm8k-.*' has 28\d tokens with its solution, the model's context 256"
    ):
        base_stage.make_base(tier(source, data_dir).base_job(), tmp_path / "base")
    assert_nothing_written(tmp_path / "base")


def test_what_exists_is_not_overwritten(tmp_path, source, data_dir):
    (tmp_path / "base").mkdir()
    with pytest.raises(UserError, match="exists: remove it"):
        base_stage.make_base(tier(source, data_dir).base_job(), tmp_path / "base")


def test_null_drops_the_sft(tmp_path, source, data_dir):
    settings = read_tier("smollm2", {"model": {"source": str(source), "sft": None}})
    base_stage.make_base(settings.base_job(), tmp_path / "base")
    assert (tmp_path / "base" / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert not (tmp_path / "base" / "training.json").exists()


@pytest.mark.slow
def test_the_base_is_made_again_when_its_sft_changes(tmp_path, source):
    rows = [row(n) for n in range(30)]
    problems = tmp_path / "sums.jsonl"
    problems.write_text(
        "".join(
            json.dumps({"question": r["question"], "answer": 9 + n, "solution": r["answer"]}) + "\n"
            for n, r in enumerate(rows)
        )
    )
    (tmp_path / "copy").mkdir()
    folder = copy_project(tmp_path / "copy")
    model = f"source: {source}, sft: {{steps: %s, batch_size: 2}}"
    common = ("results/smollm2/own/sums/base/model", "--configfile", "configs/smollm2.yaml")

    def run(steps: str, *options: str) -> str:
        world = f"world={{file: {problems}}}"
        done = snakemake(folder, *options, *common, "--config", f"model={{{model % steps}}}", world)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout + done.stderr

    run("1")
    taught = json.loads(
        (folder / "results" / "smollm2" / "own" / "sums" / "base" / "model" / "training.json").read_text()
    )
    assert taught["sft"]["steps"] == 1
    assert "Nothing to be done" in run("1", "-n")
    assert "\nbase " in run("2", "-n")
