"""Rollouts with a transformers model, in this process, with continuous batching.

The `generate` of transformers makes every row wait for the slowest and copies the whole key-value cache at every token.
Here finished rows leave early (the last active rows move into their places, so the active rows are always a prefix of
one preallocated cache), waiting prompts take the free slots, and a prompt's keys and values are computed once for all
of its samples. On a GPU the steps are replayed as CUDA graphs, and the host checks for finished rows every eighth step.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from iapo_bench.errors import UserError
from iapo_bench.models.checkpoints import context_of, decoder_and_head, evaluating
from iapo_bench.models.exact import require_exact
from iapo_bench.models.sharding import whole
from iapo_bench.progress import progress as progress_bar
from iapo_bench.rollout import Completion, Sampling
from iapo_bench.rollout.decode_graph import EXACT, GRAPHS, CudaCapture, Schedule, StepGraphs
from iapo_bench.rollout.draw import invert_cdf
from iapo_bench.rollout.slot_cache import SlotCache, decode, decoded_states, prefill
from iapo_bench.seeds import row_uniforms, stream_seed

PREFILL_TOKENS = 2**14  # per forward pass: enough for full speed, at most 3 GiB of activations and cache for a 7B model


class TransformersEngine:
    """Generates with the current weights of `model`: in training the engine and the trainer share them.

    `batch_size`: completions generated at once. `schedule`: by default chosen for the device.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        batch_size: int = 256,
        progress: bool = False,
        schedule: Schedule | None = None,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.progress = progress
        self.schedule = schedule

    def sync(self, model: PreTrainedModel) -> None:
        """Use `model` from now on."""
        self.model = model

    def close(self) -> None:
        """Nothing to free: the engine does not own the model."""

    def generate(self, prompts: list[list[int]], sampling: Sampling) -> list[Completion]:
        """`samples_per_prompt` completions for each prompt, adjacent, in order.

        Raises UserError for a prompt that leaves no room for `max_tokens` in the model's context, and for an
        architecture that the engine cannot follow exactly.
        """
        context = context_of(self.model.config)
        longest = max(map(len, prompts), default=0)
        if longest + sampling.max_tokens > context:
            raise UserError(
                f"a prompt of {longest} tokens and {sampling.max_tokens} more exceed the model's context of {context}"
            )
        with whole(self.model) as model, evaluating(model), torch.inference_mode():
            schedule = self.schedule or (GRAPHS if model.device.type == "cuda" else EXACT)
            if prompts:
                states = partial(decoded_states, schedule)
                require_exact(model, longest + sampling.max_tokens, "rollout engine", states)
            run = _Run(model, prompts, sampling, self.batch_size, self.progress, schedule)
            try:
                return run.finish()
            finally:
                run.release()


@dataclass(frozen=True)
class _Request:
    index: int
    prompt: int


class _Run:
    """One call of `generate`. Rows 0 to `active` - 1 of every per-row tensor and of the cache are active.

    A row that finishes between two checks by the host runs on until the next; its further tokens are discarded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: list[list[int]],
        sampling: Sampling,
        batch_size: int,
        progress: bool,
        schedule: Schedule,
    ) -> None:
        self.decoder, self.head = decoder_and_head(model)
        self.device = model.device
        self.prompts = prompts
        self.sampling = sampling
        self.schedule = schedule
        n = sampling.samples_per_prompt
        self.waiting = [_Request(p * n + s, p) for p in range(len(prompts)) for s in range(n)][::-1]
        self.done: list[Completion | None] = [None] * len(self.waiting)
        self.slots = min(batch_size, len(self.waiting))
        self.active = 0
        self.width = schedule.width(max(map(len, prompts), default=0) + sampling.max_tokens)
        self.span = 0  # positions that the next step must see
        self.stretch = 0  # steps until the next check
        self.cache = SlotCache(model, self.slots, self.width)
        long = {"dtype": torch.long, "device": self.device}
        self.request_R = torch.zeros(self.slots, **long)  # index into done
        self.place_R = torch.zeros(self.slots, **long)  # where a row's output is stored; unlike the row, it never moves
        self.last_R = torch.zeros(self.slots, **long)  # the token to feed next
        self.position_R = torch.zeros(self.slots, **long)  # position of that token
        self.count_R = torch.zeros(self.slots, **long)  # completion tokens so far
        self.running_R = torch.zeros(self.slots, dtype=torch.bool, device=self.device)
        self.free_places = list(range(self.slots))
        # The last column takes the draws of finished rows.
        columns = sampling.max_tokens + 1
        self.ids_RT = torch.zeros(self.slots, columns, **long)
        self.logp_RT = torch.zeros(self.slots, columns, device=self.device)
        self.uniform_RT = torch.zeros(self.slots, columns, dtype=torch.float64, device=self.device)
        self.eos = torch.tensor(sampling.eos_ids, **long)
        self.graphs = StepGraphs(self._step, CudaCapture(self.device)) if schedule.graphs else None
        self.bar = progress_bar(total=len(self.waiting), desc="generate", unit="completion", disable=not progress)

    def finish(self) -> list[Completion]:
        while self.waiting or self.active:
            if self._may_admit(self.active):
                self._admit(min(self.slots - self.active, len(self.waiting)))
            else:
                self._advance()
            self._look()
        return [completion for completion in self.done if completion is not None]

    def release(self) -> None:
        """Close the progress bar and free the graphs."""
        self.bar.close()
        if self.graphs:
            self.graphs.release()
            self.graphs = None  # it refers to this run, whose cache would wait for the garbage collector

    def _may_admit(self, active: int) -> bool:
        free = self.slots - active
        # Prefill in large batches: a forward pass for a handful of prompts costs as much as one for many.
        return bool(self.waiting) and (free >= max(1, self.slots // 4) or free >= len(self.waiting))

    def _admit(self, n: int) -> None:
        requests = [self.waiting.pop() for _ in range(n)]
        unique = sorted({request.prompt for request in requests})
        together = max(1, PREFILL_TOKENS // max(len(self.prompts[p]) for p in unique))
        for i in range(0, len(unique), together):
            part = unique[i : i + together]
            self._prefill(part, [request for request in requests if part[0] <= request.prompt <= part[-1]])

    def _prefill(self, unique: list[int], requests: list[_Request]) -> None:
        n = len(requests)
        rows = slice(self.active, self.active + n)
        which = torch.tensor([unique.index(request.prompt) for request in requests], device=self.device)
        ids_UP = pad_sequence([torch.tensor(self.prompts[p]) for p in unique], batch_first=True).to(self.device)
        length_U = torch.tensor([len(self.prompts[p]) for p in unique], device=self.device)
        hidden_UPD, prefilled = prefill(self.decoder, ids_UP)
        self.cache.fill(rows, prefilled, which)
        last_UD = hidden_UPD[torch.arange(len(unique), device=self.device), length_U - 1]

        places = [self.free_places.pop() for _ in range(n)]
        first = self.sampling.first_index
        seeds = [stream_seed(self.sampling.seed, "completion", first + request.index) for request in requests]
        uniforms = torch.from_numpy(row_uniforms(seeds, self.sampling.max_tokens)).to(self.device)
        self.place_R[rows] = torch.tensor(places, device=self.device)
        self.uniform_RT[self.place_R[rows], :-1] = uniforms
        self.request_R[rows] = torch.tensor([request.index for request in requests], device=self.device)
        self.position_R[rows] = length_U[which] - 1
        self.count_R[rows] = 0
        self.running_R[rows] = True
        self.active += n
        self._choose(rows, self.head(last_UD)[which])

    def _advance(self) -> None:
        """Run steps without reading their results, so that a GPU never waits for the host."""
        step = self.graphs or self._step
        for _ in range(self.stretch):
            step(self.schedule.rows(self.active, self.slots), self.schedule.span(self.span, self.width))
            self.span = min(self.span + 1, self.width)

    def _step(self, rows: int, span: int) -> None:
        """Generate a token for each of the first `rows` rows, all at positions below `span`. Only tensors change."""
        position_R = self.position_R[:rows]
        mask = self.cache.advance(position_R, span)
        hidden_RD = decode(self.decoder, self.cache, self.last_R[:rows], position_R, mask)
        self._choose(slice(0, rows), self.head(hidden_RD))

    def _choose(self, rows: slice, logits_RV: torch.Tensor) -> None:
        """Draw and record the next token of the running rows among `rows`."""
        place_R, running_R = self.place_R[rows], self.running_R[rows]
        column_R = torch.where(running_R, self.count_R[rows], self.sampling.max_tokens)
        logits_RV = logits_RV.float()
        if self.sampling.temperature not in (0, 1):
            logits_RV = logits_RV / self.sampling.temperature
        logp_RV = torch.log_softmax(logits_RV, dim=-1)
        if self.sampling.temperature == 0:
            token_R = logp_RV.argmax(dim=-1)
        else:
            token_R = invert_cdf(logp_RV, self.uniform_RT[place_R, column_R], self.sampling.top_p)
        self.ids_RT[place_R, column_R] = token_R
        self.logp_RT[place_R, column_R] = logp_RV.gather(1, token_R[:, None])[:, 0]
        self.last_R[rows] = torch.where(running_R, token_R, self.last_R[rows])
        self.count_R[rows] += running_R
        self.position_R[rows] += running_R
        self.running_R[rows] &= ~self._is_eos(token_R) & (self.count_R[rows] < self.sampling.max_tokens)

    def _is_eos(self, token_R: torch.Tensor) -> torch.Tensor:
        return (token_R[:, None] == self.eos).any(dim=1)

    def _look(self) -> None:
        """Wait for the device, plan the next steps, and hand over finished rows if that makes room or saves work."""
        rows = slice(0, self.active)
        running_R, count_R = self.running_R[rows], self.count_R[rows]
        furthest = (self.position_R[rows] * running_R).max()
        fewest = torch.where(running_R, count_R, self.sampling.max_tokens).min()
        running, position, count = torch.stack([running_R.sum(), furthest, fewest]).tolist()
        self.span = position + 1
        self.stretch = min(self.schedule.check_every, self.sampling.max_tokens - count)
        smaller = self.schedule.rows(running, self.slots) < self.schedule.rows(self.active, self.slots)
        if running == 0 or smaller or self._may_admit(running):
            self._hand_over(running)

    def _hand_over(self, running: int) -> None:
        """Store the finished completions and move running rows into the gaps, so that the first `running` rows are
        active."""
        ended_R = ~self.running_R[: self.active]
        ended = ended_R.nonzero()[:, 0]
        places = self.place_R[ended]
        ids, logps = self.ids_RT[places].cpu().numpy(), self.logp_RT[places].cpu().numpy()
        counts, requests = self.count_R[ended].tolist(), self.request_R[ended].tolist()
        stops = self._is_eos(self.last_R[ended]).tolist()
        for i, (count, request, stopped) in enumerate(zip(counts, requests, stops, strict=True)):
            self.done[request] = Completion(
                tuple(ids[i, :count].tolist()), tuple(logps[i, :count].tolist()), "stop" if stopped else "length"
            )
        self.free_places += places.tolist()
        self.bar.update(len(counts))

        holes = ended[ended < running]
        movers = (~ended_R[running:]).nonzero()[:, 0] + running
        for tensor in (self.request_R, self.place_R, self.last_R, self.position_R, self.count_R):
            tensor[holes] = tensor[movers]
        self.cache.move(movers, holes)
        self.running_R[:running] = True
        self.running_R[running:] = False
        self.active = running
