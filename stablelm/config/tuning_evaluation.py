"""What a fine-tuning run measures while it goes on, which checkpoint is its result, and when it stops."""

from pydantic import Field, model_validator

from stablelm.config.schema import Schema

LOSS, ANSWERS = "loss", "answer_accuracy"
"""Numbers of the held-out examples that a run may be judged by."""


class TuningEvaluationConfig(Schema):
    """What is measured while the model is tuned: loss on the held-out examples, and the share of their
    answers that it would write token for token; what it writes to a few prompts; lm_eval tasks."""

    every: int = Field(50, ge=1)
    """Steps between evaluations; the last step is always evaluated."""
    rows: int = Field(256, ge=1)
    """Rows of held-out examples that are read, at most."""
    samples: int = Field(2, ge=0)
    """Held-out examples whose prompt the model answers at each evaluation, the likeliest token each time;
    they are in metrics.jsonl and in the report."""
    prompts: list[str] = Field(default_factory=list)
    """Prompts that it answers besides; for conversations, what the user says."""
    sample_tokens: int = Field(48, ge=1)
    """Tokens of such an answer, at most."""
    copying: int = Field(0, ge=0)
    """Random sequences of ids, each given twice in a row: how well is the repetition predicted? Tells whether
    tuning spoils what the base model could. 0 leaves it out."""
    tasks: list[str] = Field(default_factory=list)
    """lm_eval tasks that score continuations, as [piqa, arc_easy]; needs `pip install stablelm[eval]`."""
    task_data: str | None = Field(None, min_length=1)
    """Directory with <task>.jsonl for each of them; null asks the Hub when the run starts."""
    limit: int | None = Field(200, ge=1)
    """Only so many items of each task; null takes all."""
    best: str | None = None
    """Keep the checkpoint with the lowest held-out loss (loss), the most held-out answers right
    (answer_accuracy), or the best number of one of `tasks`, however old it gets; the run then opens as it,
    and resumes from the newest all the same. null: as the newest."""
    patience: int | None = Field(None, ge=1)
    """Stop when so many evaluations in a row were no better than the best one, which is kept (best: loss, if
    nothing else is said). null makes all steps."""

    @model_validator(mode="after")
    def _judged(self) -> "TuningEvaluationConfig":
        if self.best not in (None, LOSS, ANSWERS) and not self.tasks:
            raise ValueError(f"best {self.best!r} is not measured; take {LOSS}, {ANSWERS}, or one of tasks")
        if "" in self.prompts:
            raise ValueError("prompts has an empty one; give some text")
        return self

    @property
    def judged_by(self) -> str | None:
        """The number that tells the best checkpoint; None when none is kept."""
        return self.best or (LOSS if self.patience else None)
