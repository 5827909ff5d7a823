"""What a run measures while it goes on."""

from pydantic import Field, model_validator

from stablelm.config.schema import Schema


class EvaluationConfig(Schema):
    """Evaluation during training, on the model as it is spread over the processes: held-out loss, bits per
    byte and calibration, a small suite made from the user's own text, and lm_eval tasks if asked."""

    every: int = Field(1000, ge=1)
    """Steps between evaluations; the last step is always evaluated."""
    windows: int = Field(64, ge=1)
    """Windows read per source and evaluation."""
    copying: int = Field(16, ge=0)
    """Random sequences of ids, each given twice in a row: how well is the repetition predicted? 0 leaves it
    out."""
    cloze: int = Field(32, ge=0)
    """Passages of each source's held-out documents: their true continuation among those of others, and their
    last word; at least 4, or 0, which leaves it out."""
    tasks: list[str] = Field(default_factory=list)
    """lm_eval tasks that score continuations, as [piqa, arc_easy]; needs `pip install stablelm[eval]`."""
    task_data: str | None = Field(None, min_length=1)
    """Directory with <task>.jsonl for each of them; null asks the Hub when the run starts."""
    limit: int | None = Field(200, ge=1)
    """Only so many items of each task; null takes all."""

    @model_validator(mode="after")
    def _tasks(self) -> "EvaluationConfig":
        if 0 < self.cloze < 4:
            raise ValueError(f"cloze {self.cloze}: a continuation stands among those of three others; take 4")
        if self.task_data is not None and not self.tasks:
            raise ValueError("task_data is given but no tasks; name them, as tasks: [piqa]")
        if repeated := [task for task in self.tasks if self.tasks.count(task) > 1]:
            raise ValueError(f"tasks names {repeated[0]} twice; keep one")
        return self
