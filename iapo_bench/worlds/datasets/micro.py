"""The micro world: arithmetic chains whose every token has a known role.

A problem is a chain of one-digit operands evaluated from the left, `7 + 8 * 2 = ?`. A trace works it out step by step
and, like human text, says more than it needs: fillers, restatements, and checks. Checks have a purpose. Steps sometimes
slip, and only a check that follows can find and fix the slip, so a model that stops checking before it stops slipping
pays in accuracy for the tokens that it saves.
"""

import dataclasses
import enum
import random
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from iapo_bench.config.prompt import PromptConfig
from iapo_bench.config.world import WorldConfig
from iapo_bench.errors import UserError, unknown
from iapo_bench.seeds import stream_seed
from iapo_bench.worlds import ANSWER_CLOSE, ANSWER_OPEN, SPLITS, TAGS, THINK_CLOSE, THINK_OPEN, GraderKind, Problem
from iapo_bench.worlds.dialogue import Dialogue

if TYPE_CHECKING:  # grading imports this file and must start fast
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
DIGITS = tuple("0123456789")
OPERATORS = ("+", "-", "*")
FILLERS = ("so", "now", "well", "okay", "hmm", "then", "let", "me", "see", "right", "next", "just")
VOCABULARY = (
    *(PAD, EOS, UNKNOWN),
    *TAGS,
    *DIGITS,
    *OPERATORS,
    *("=", ";", "?"),
    *FILLERS,
    *("check", "ok", "wrong", "fix"),
    *("again", "we", "have"),
)
LARGEST = 99
MOST_PROBLEMS = 1_000_000  # per split
MOST_TERMS = 100


class Role(enum.Enum):
    """What a token of a trace is for. Everything but NEEDED can go, as long as no slip needs fixing."""

    NEEDED = "needed"
    FILLER = "filler"
    CHECK = "check"
    RESTATEMENT = "restatement"


@dataclass(frozen=True)
class MicroWorld:
    """Problems and traces of the micro world, all drawn from `seed`.

    A problem has `min_terms` to `max_terms` operands; SFT teaches chains of up to `taught_terms` only, so that some
    problems are beyond the base model and not just a matter of luck. `slip`, `check`, `filler` and `restate` are the
    probabilities, at every step of a trace, of a wrong result, a check, one to three fillers, and a restatement.
    """

    n_train: int = 6000
    n_validation: int = 200
    n_test: int = 250
    min_terms: int = 3
    max_terms: int = 7
    taught_terms: int = 5
    slip: float = 0.1
    check: float = 0.4
    filler: float = 0.4
    restate: float = 0.25
    seed: int = 0

    name: ClassVar[str] = "micro"
    grader: ClassVar[GraderKind] = "digits"

    @classmethod
    def open(cls, config: WorldConfig, seed: int) -> "MicroWorld":
        """The world with a tier's options. Raises UserError for an unknown one."""
        known = {field.name for field in dataclasses.fields(cls)} - {"seed"}
        for option in config.options:
            if option not in known:
                raise unknown("option of the micro world", option, known)
        options: dict[str, Any] = dict(config.options)
        return cls(**options, seed=seed)

    def __post_init__(self) -> None:
        for name in ("n_train", "n_validation", "n_test", "min_terms", "max_terms", "taught_terms"):
            if getattr(self, name) != int(getattr(self, name)):
                raise UserError(f"micro world: {name} must be a whole number, is {getattr(self, name)}")
        for name in ("slip", "check", "filler", "restate"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"micro world: {name} must be a probability from 0 to 1, is {getattr(self, name)}")
        if not 2 <= self.min_terms <= self.taught_terms <= self.max_terms <= MOST_TERMS:
            terms = (self.min_terms, self.taught_terms, self.max_terms)
            raise UserError(f"micro world: 2 <= min_terms <= taught_terms <= max_terms <= {MOST_TERMS}, not {terms}")
        for name in ("n_train", "n_validation", "n_test"):
            if not 1 <= (size := getattr(self, name)) <= MOST_PROBLEMS:
                raise UserError(f"micro world: {name} must be from 1 to {MOST_PROBLEMS} problems, is {str(size)[:20]}")

    def load(self, split: str) -> list[Problem]:
        """The problems of a split; no question appears in two splits."""
        sizes = {"test": self.n_test, "validation": self.n_validation, "train": self.n_train}
        rng = random.Random(stream_seed(self.seed, "micro-problems"))
        seen: set[str] = set()
        for name, size in sizes.items():
            problems: list[Problem] = []
            misses = 0
            while len(problems) < size:
                terms = _draw_chain(rng, rng.randint(self.min_terms, self.max_terms))
                question = _question(terms)
                if question in seen or not _is_problem(question):
                    misses += 1
                    if misses > 1000 + 20 * size:
                        raise UserError(f"micro world: fewer than {size} problems of {self.max_terms} terms exist")
                    continue
                seen.add(question)
                problems.append(Problem(f"micro-{name}-{len(problems)}", question, str(evaluate(question))))
            if name == split:
                return problems
        raise UserError(f"unknown split '{split}': known: {', '.join(SPLITS)}")

    def encode_prompt(self, problem: Problem, tokenizer: "PreTrainedTokenizerBase") -> list[int]:
        """Token ids of the bare question, which the model was taught to answer with a trace."""
        return self.dialogue(tokenizer).encode(problem.question)

    def dialogue(self, tokenizer: "PreTrainedTokenizerBase", prompt: PromptConfig | None = None) -> Dialogue:
        """The bare question as prompt. Raises UserError for any prompt settings."""
        if prompt not in (None, PromptConfig()):
            raise UserError("the micro world asks the bare question: leave 'prompt' out")
        return Dialogue(
            tokenizer, render=str, notes=("the micro world asks the bare question: no chat template is used",)
        )

    def perfect_reply(self, problem: Problem) -> str:
        """A correct, well-formed completion."""
        return f"{THINK_OPEN} {THINK_CLOSE} {ANSWER_OPEN} {' '.join(problem.answer)} {ANSWER_CLOSE}"

    def write_trace(self, question: str, rng: random.Random) -> list[tuple[str, Role]]:
        """A trace for the question, as a human might write it: every word (the end of sequence too) with its role.

        A slip that no check follows stays, and the answer is then wrong.
        """
        value, steps = _parse(question)
        words: list[tuple[str, Role]] = [(THINK_OPEN, Role.NEEDED)]

        def say(role: Role, *parts: str) -> None:
            words.extend((word, role) for part in parts for word in part.split())

        for operator, operand in steps:
            if rng.random() < self.filler:
                say(Role.FILLER, *rng.sample(FILLERS, rng.randint(1, 3)))
            right = _apply(value, operator, operand)
            said = _slip(right, rng) if rng.random() < self.slip else right
            step = f"{_spell(value)} {operator} {operand} ="
            say(Role.NEEDED, step, _spell(said), ";")
            if rng.random() < self.check:
                verdict = "ok" if said == right else f"wrong fix {_spell(right)}"
                say(Role.CHECK, "check", step, _spell(right), verdict, ";")
                said = right
            if rng.random() < self.restate:
                say(
                    Role.RESTATEMENT,
                    *(("again", step, _spell(said)) if rng.random() < 0.5 else ("we have", _spell(said))),
                )
                say(Role.RESTATEMENT, ";")
            value = said
        say(Role.NEEDED, THINK_CLOSE, ANSWER_OPEN, _spell(value), ANSWER_CLOSE, EOS)
        return words

    def traces(self, count: int) -> list[tuple[str, str]]:
        """`count` (question, trace) pairs for SFT, with questions that no split of any micro world holds."""
        rng = random.Random(stream_seed(self.seed, "micro-traces"))
        pairs: list[tuple[str, str]] = []
        while len(pairs) < count:
            question = _question(_draw_chain(rng, rng.randint(self.min_terms, self.taught_terms)))
            if not _is_problem(question):
                pairs.append((question, " ".join(word for word, _ in self.write_trace(question, rng))))
        return pairs

    def lessons(self, count: int, cut: float) -> list[tuple[str, str]]:
        """`count` (prompt, completion) pairs for SFT: a question and its trace or, with probability `cut`, a question
        with a trace cut off after a random word and the tags, and the answer of that trace.

        The second kind teaches answering early. Only completions are learnt, so the model is not taught to stop
        thinking.
        """
        rng = random.Random(stream_seed(self.seed, "micro-cuts"))
        pairs = self.traces(count)
        return [_cut(question, trace, rng) if rng.random() < cut else (question, trace) for question, trace in pairs]


def token_roles(words: list[str]) -> list[Role]:
    """The role of every word of a trace, written by `write_trace` or by a model.

    A filler counts as one anywhere. `check` opens a check, `again` and `we` a restatement; each ends with its `;`.
    """
    roles = []
    current = Role.NEEDED
    for word in words:
        if word in FILLERS:
            roles.append(Role.FILLER)
            continue
        if word in TAGS:
            current = Role.NEEDED
        elif word == "check":
            current = Role.CHECK
        elif word in ("again", "we"):
            current = Role.RESTATEMENT
        roles.append(current)
        if word == ";":
            current = Role.NEEDED
    return roles


def evaluate(question: str) -> int:
    """The answer of a chain, from the left."""
    value, steps = _parse(question)
    for operator, operand in steps:
        value = _apply(value, operator, operand)
    return value


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """The word-level tokenizer of the micro world; tags are found even without spaces around them."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=PAD, eos_token=EOS, unk_token=UNKNOWN)


def _is_problem(question: str) -> bool:
    """Whether a question belongs to the half that splits may use; the other half is for SFT.

    The question alone decides, so that a trained base has seen no problem of any seed or size of the world.
    """
    return zlib.crc32(question.encode()) % 2 == 0


def _cut(question: str, trace: str, rng: random.Random) -> tuple[str, str]:
    words = trace.split()
    kept = words[: rng.randint(words.index(THINK_OPEN) + 1, words.index(THINK_CLOSE))]
    prompt = " ".join([question, *kept, THINK_CLOSE, ANSWER_OPEN])
    return prompt, " ".join(words[words.index(ANSWER_OPEN) + 1 :])


def _draw_chain(rng: random.Random, n_terms: int) -> tuple[int, list[tuple[str, int]]]:
    value = first = rng.randint(1, 9)
    steps: list[tuple[str, int]] = []
    while len(steps) < n_terms - 1:
        operator, operand = rng.choice(OPERATORS), rng.randint(1, 9)
        if 0 <= (after := _apply(value, operator, operand)) <= LARGEST:
            steps.append((operator, operand))
            value = after
    return first, steps


def _question(chain: tuple[int, list[tuple[str, int]]]) -> str:
    first, steps = chain
    return " ".join([str(first), *(f"{operator} {operand}" for operator, operand in steps), "= ?"])


def _parse(question: str) -> tuple[int, list[tuple[str, int]]]:
    words = question.removesuffix("= ?").split()
    return int(words[0]), [(operator, int(n)) for operator, n in zip(words[1::2], words[2::2], strict=True)]


def _apply(value: int, operator: str, operand: int) -> int:
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operator]


def _slip(value: int, rng: random.Random) -> int:
    """A near miss: off by one or two, or by ten."""
    return value + rng.choice((-10, -2, -1, 1, 2, 10))


def _spell(value: int) -> str:
    return " ".join(str(value))
