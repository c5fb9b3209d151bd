"""Steps of fixed shapes: on a CPU the very function that a GPU captures, replayed by calling it."""

import gc
import warnings
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from test_engine import EOS, PROMPTS, settings
from torch.utils._python_dispatch import TorchDispatchMode

from iapo_bench.rollout import transformers_engine
from iapo_bench.rollout.decode_graph import EXACT, GRAPHS, PADDED, Schedule, StepGraphs
from iapo_bench.rollout.transformers_engine import TransformersEngine

MANY = [[7 + (i + j) % 20 for j in range(2 + 5 * i % 13)] for i in range(9)]


class CallAgain:
    """Stands for CUDA: capturing runs nothing, replaying does the work on the tensors as they are then."""

    def __init__(self, device: torch.device | None = None) -> None:
        self.captured = self.warmed = 0

    def warm_up(self, work: Callable[[], None]) -> None:
        self.warmed += 1
        work()

    def capture(self, work: Callable[[], None]) -> "Again":
        self.captured += 1
        return Again(work)

    def release(self) -> None:
        pass


class Again:
    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work

    def reset(self) -> None:
        self.replay = None


class NoCapture(CallAgain):
    def capture(self, work):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")


@pytest.fixture
def small_sizes(monkeypatch):
    """Sizes at which models of a test pass through several."""
    monkeypatch.setattr("iapo_bench.rollout.decode_graph.SMALLEST_ROWS", 2)
    monkeypatch.setattr("iapo_bench.rollout.decode_graph.SMALLEST_SPAN", 8)
    monkeypatch.setattr("iapo_bench.rollout.decode_graph.WIDTH_MULTIPLE", 4)


@pytest.fixture
def runs(monkeypatch) -> list:
    """Every run of an engine, with graphs that `CallAgain` makes."""
    made = []

    class Recorded(transformers_engine._Run):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            self.capture = self.graphs.capture if self.graphs else None
            made.append(self)

        def _hand_over(self, running: int) -> None:
            super()._hand_over(running)
            assert self.running_R.nonzero()[:, 0].tolist() == list(range(self.active)), "rows of padding must not run"

    monkeypatch.setattr(transformers_engine, "CudaCapture", CallAgain)
    monkeypatch.setattr(transformers_engine, "_Run", Recorded)
    return made


def generate(model, schedule: Schedule, batch_size: int, prompts=PROMPTS, **changes):
    return TransformersEngine(model, batch_size=batch_size, schedule=schedule).generate(prompts, settings(**changes))


def same(one, other) -> None:
    assert [c.token_ids for c in one] == [c.token_ids for c in other]
    assert [c.finish_reason for c in one] == [c.finish_reason for c in other]
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(torch.tensor(a.logprobs), torch.tensor(b.logprobs), atol=2e-5, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 6, 11, 64])
@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_are_those_of_exact_steps(any_model, small_sizes, runs, batch_size, temperature):
    """Rows that end between two looks, refills, sizes that shrink and grow: the schedule changes no completion."""
    changes = {"prompts": MANY, "temperature": temperature, "max_tokens": 21, "eos_ids": (EOS, 9, 30)}
    changes["samples_per_prompt"] = 3 if temperature else 1
    exact = generate(any_model, EXACT, batch_size, **changes)
    for schedule in (GRAPHS, replace(GRAPHS, check_every=5), replace(PADDED, check_every=1)):
        same(generate(any_model, schedule, batch_size, **changes), exact)
    if temperature:
        assert len({len(c.token_ids) for c in exact}) > 4, "rows must end at different times"


@pytest.mark.parametrize("changes", [{"max_tokens": 1}, {"max_tokens": 2}, {"top_p": 0.5}, {"eos_ids": ()}])
def test_corner_cases_are_those_of_exact_steps(model, small_sizes, runs, changes):
    same(generate(model, GRAPHS, 7, **changes), generate(model, EXACT, 7, **changes))


def test_no_prompts(model, runs):
    assert generate(model, GRAPHS, 7, prompts=[]) == []


class HostNeeded(TorchDispatchMode):
    """Raises at an operation that waits for the device, brings data to it, or has a shape that data decide."""

    NAMES = ("_local_scalar_dense", "nonzero", "masked_select", "lift_fresh", "unique", "_unique2", "isin", "equal")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        assert name not in self.NAMES, f"{function} in a step"
        assert not by_mask, f"{function} by a mask in a step"
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("changes", [{}, {"temperature": 0.0}, {"top_p": 0.5}])
def test_a_step_needs_no_host(any_model, monkeypatch, runs, changes):
    """What a capture would refuse, found without a GPU."""
    monkeypatch.setattr("iapo_bench.rollout.draw.BLOCK", 16)  # the way of large vocabularies
    step = transformers_engine._Run._step

    def watched(run, rows, span):
        with HostNeeded():
            step(run, rows, span)

    monkeypatch.setattr(transformers_engine._Run, "_step", watched)
    assert len(generate(any_model, GRAPHS, 64, **changes)) == 20


def test_a_step_changes_no_row_that_ended_and_nothing_outside_its_tensors(model, runs):
    """A graph holds addresses: a step must leave every tensor of the run where it is."""
    generate(model, GRAPHS, 8, eos_ids=(), max_tokens=6)
    (run,) = runs
    with torch.inference_mode():
        run.running_R[:3] = True
        run.count_R[:] = torch.tensor([0, 1, 2, 3, 4, 5, 5, 5])
        run.place_R[:] = torch.arange(8)
        run.position_R[:] = 5
        tensors = {name: value for name, value in vars(run).items() if isinstance(value, torch.Tensor)}
        before = {name: (value.data_ptr(), value.clone()) for name, value in tensors.items()}
        run._step(8, 12)
        for name, value in tensors.items():
            assert getattr(run, name) is value
            assert value.data_ptr() == before[name][0]
    assert (run.count_R - before["count_R"][1]).tolist() == [1] * 3 + [0] * 5
    assert (run.position_R - before["position_R"][1]).tolist() == [1] * 3 + [0] * 5
    assert torch.equal(run.last_R[3:], before["last_R"][1][3:])
    assert torch.equal(run.ids_RT[3:, :-1], before["ids_RT"][1][3:, :-1])
    assert torch.equal(run.logp_RT[3:, :-1], before["logp_RT"][1][3:, :-1])


def test_a_capture_that_fails_warns_once_and_changes_nothing(model, small_sizes, monkeypatch):
    monkeypatch.setattr(transformers_engine, "CudaCapture", NoCapture)
    with pytest.warns(UserWarning, match="generating without CUDA graphs.*stream is capturing$") as caught:
        completions = generate(model, GRAPHS, 7)
    assert len(caught) == 1
    same(completions, generate(model, EXACT, 7))


def test_most_steps_are_replays_of_few_graphs(model, runs):
    """From the second step of a shape on, at the sizes of a training step."""
    prompts = [[7 + i % 20 for i in range(100)]] * 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        generate(model, GRAPHS, 128, prompts=prompts, max_tokens=150, samples_per_prompt=8, eos_ids=(EOS,))
    (run,) = runs
    assert 2 <= run.capture.captured <= 6
    assert run.cache.layers[0].keys.shape[2] == 256  # 250, rounded up


def test_the_cache_goes_with_the_call(model, monkeypatch):
    """At once: a GPU's memory is needed before the garbage collector looks for cycles."""
    caches = []

    class Watched(transformers_engine.SlotCache):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            caches.append(weakref.ref(self.layers[0].keys))

    monkeypatch.setattr(transformers_engine, "CudaCapture", CallAgain)
    monkeypatch.setattr(transformers_engine, "SlotCache", Watched)
    gc.collect()
    gc.disable()
    try:
        generate(model, GRAPHS, 7)
        assert [cache() for cache in caches] == [None]
    finally:
        gc.enable()


def test_a_shape_runs_once_before_it_is_captured():
    calls = []
    graphs = StepGraphs(lambda rows, span: calls.append((rows, span)), CallAgain())
    for shape in [(4, 8), (4, 8), (4, 16), (4, 8), (4, 16)]:
        graphs(*shape)
    assert calls == [(4, 8), (4, 8), (4, 16), (4, 8), (4, 16)]
    assert (graphs.capture.warmed, graphs.capture.captured) == (2, 2)


def test_no_step_after_the_last_token(model, monkeypatch):
    steps = []
    step = transformers_engine._Run._step
    monkeypatch.setattr(transformers_engine._Run, "_step", lambda *a: (steps.append(a[1:]), step(*a)))
    generate(model, PADDED, 64, max_tokens=11, eos_ids=())
    assert steps == [(20, 64)] * 10


def test_sizes():
    assert [GRAPHS.rows(active, 256) for active in (1, 32, 33, 64, 129, 256)] == [32, 32, 64, 64, 256, 256]
    assert [GRAPHS.rows(active, 300) for active in (20, 75, 76, 151)] == [37, 75, 150, 300]
    assert GRAPHS.rows(1, 5) == 5
    assert [GRAPHS.span(n, 704) for n in (1, 128, 129, 193, 300, 385, 513)] == [128, 128, 192, 256, 384, 512, 704]
    assert GRAPHS.width(641) == 704
    assert (EXACT.rows(3, 8), EXACT.span(9, 99), EXACT.width(9)) == (3, 9, 9)
    # All that 512 tokens after a prompt of 190 pass through.
    assert len({GRAPHS.span(n, GRAPHS.width(702)) for n in range(191, 703)}) == 5


def test_prompts_are_read_in_parts(any_model, monkeypatch):
    whole = generate(any_model, EXACT, 64, prompts=MANY)
    monkeypatch.setattr(transformers_engine, "PREFILL_TOKENS", 25)
    passes = []
    decoder = any_model.get_decoder()
    handle = decoder.register_forward_pre_hook(
        lambda module, args, kwargs: passes.append(kwargs["input_ids"].shape), with_kwargs=True
    )
    same(generate(any_model, EXACT, 64, prompts=MANY), whole)
    handle.remove()
    read = [shape for shape in passes if shape[1] > 1]
    assert len(read) > 3
    assert all(shape.numel() <= 25 for shape in read)
