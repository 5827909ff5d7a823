"""What only its makers can say about a model: name, licence, languages, gating. The rest of a model card is
read from the checkpoint."""

import re

from pydantic import Field, field_validator, model_validator

from stablelm.config.schema import Schema

GATING = ("text", "checkbox", "date_picker", "country")


class CardConfig(Schema):
    """The model card that `stablelm export` writes (README.md, in the Hub's format)."""

    name: str = ""
    """Name of the model; left out, the name of the exported directory."""
    licence: str = ""
    """Licence of the weights as the Hub spells it (apache-2.0, cc-by-sa-4.0, other …). A share-alike licence
    of the initial weights is carried over."""
    licence_name: str = ""
    """With licence `other`: its name."""
    licence_link: str = ""
    """Address of the licence's text; required with licence `other`."""
    language: list[str] = Field(default_factory=list)
    """ISO 639-1 codes of the languages, for example [en]."""
    tags: list[str] = Field(default_factory=list)
    """Tags beside causal-lm, which is always there."""
    authors: str = ""
    """Who made the model, for its details and its citation."""
    datasets: list[str] = Field(default_factory=list)
    """Hub ids of the training data, beside those that the data manifest's addresses name."""
    gated_fields: dict[str, str] = Field(default_factory=dict)
    """What the Hub asks before it lets somebody download: question → text, checkbox, date_picker or
    country."""
    intended_use: str = ""
    """A paragraph on what the model is for; left out, that of a base model."""
    limitations: str = ""
    """A paragraph on its limits; left out, that of a base model."""

    @field_validator("language")
    @classmethod
    def _codes(cls, codes: list[str]) -> list[str]:
        for code in codes:
            if not re.fullmatch(r"[a-z]{2,3}", code):
                raise ValueError(f"{code!r} is not a language code; write two or three letters, as in en")
        return codes

    @field_validator("datasets")
    @classmethod
    def _ids(cls, names: list[str]) -> list[str]:
        for name in names:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
                raise ValueError(f"{name!r} is not the id of a dataset on the Hub; write owner/name")
        return names

    @field_validator("gated_fields")
    @classmethod
    def _kinds(cls, fields: dict[str, str]) -> dict[str, str]:
        for question, kind in fields.items():
            if kind not in GATING:
                raise ValueError(f"{question!r} asks for {kind!r}; the Hub knows {', '.join(GATING)}")
        return fields

    @model_validator(mode="after")
    def _other(self) -> "CardConfig":
        if self.licence == "other" and not (self.licence_name and self.licence_link):
            raise ValueError("licence other needs licence_name and licence_link")
        return self
