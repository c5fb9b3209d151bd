"""Prompts for a chat model: the `prompt` section."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from iapo_bench.config.section import Section
from iapo_bench.errors import UserError
from iapo_bench.files import read_text


class ExampleConfig(Section):
    """A worked example: a question, and the reply that it should get, tags included."""

    question: Annotated[str, Field(pattern=r"\S")] = Field(description="what the user asks")
    reply: Annotated[str, Field(pattern=r"\S")] = Field(description="what the model should reply, tags included")


class PromptConfig(Section):
    """How problems are put to a chat model; unset fields are the dataset's own."""

    system: str | None = Field(default=None, description="the system text; '' for none")
    example: ExampleConfig | Literal[""] | None = Field(
        default=None, description="a worked example {question, reply}, shown as an earlier turn; '' for none"
    )
    instruction: str = Field(default="", description="text that is added after every question")
    template: str | None = Field(
        default=None,
        description="FILE.jinja, or its text, in place of the model's chat template: it sees the same variables, and "
        "question, system, example and instruction",
    )

    @model_validator(mode="before")
    @classmethod
    def _file_is_a_template(cls, value: Any) -> Any:
        return {"template": value} if isinstance(value, str) else value

    @field_validator("template")
    @classmethod
    def _read_file(cls, value: str | None) -> str | None:
        """Keep the text, not the path: a run's identity is what the model is asked."""
        if value is None or "\n" in value or not value.endswith(".jinja"):
            return value
        try:
            return read_text(Path(value))
        except UserError as error:  # pydantic adds where the file is named
            raise ValueError(f"{error}: give the path of a Jinja template") from None
