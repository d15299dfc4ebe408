"""What the user asks of an answer, whether it is to one question or in a conversation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from coe_cli.core.models.catalog import Catalog
from coe_cli.runtime.worker.protocol import Sampling


@dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """None leaves the choice to coe, the profile or the model."""

    model: str | None = None
    expert: str | None = None
    profile: str | None = None
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    resume: bool = False
    no_log: bool = False
    fallback: bool = False
    serve: bool = True
    pull: bool = True
    profiles_file: Path | None = None
    catalog_file: Path | None = None

    def expert_of(self, catalog: Catalog) -> str | None:
        """The expert who is named, or whom the user's settings name for questions that name nobody."""
        return self.expert or (None if self.model or self.resume else catalog.default_expert)

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.top_k, self.seed)
