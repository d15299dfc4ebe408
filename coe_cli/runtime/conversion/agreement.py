"""Whether two runs of one model compute the same: cosine of the first token's logits, and which token comes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec import Struct

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MIN_COSINE: Final = 0.99
"""A right DirectML run of SmolLM2 has a correlation of 0.9999 with the CPU's; fp16 RMS norms have less than 0.9."""

_TIE: Final = 0.02
"""Two tokens whose logits differ by less than this share of the way from the mean to the largest may change places."""

PROMPTS: Final = (
    "The capital of France is",
    "Water boils at a temperature of",
    "def fibonacci(n):\n    if n < 2:\n        return",
    "SELECT name FROM customers WHERE",
    "<!DOCTYPE html>\n<html>\n<head>\n<title>",
    "The derivative of x squared is",
    "If a train travels 60 miles in 1.5 hours, its average speed is",
    "The mitochondrion is",
    "Aspirin is contraindicated in patients who",
    "This agreement is made between the parties and shall",
    "In contract law, consideration means",
    "To protect a web service against SQL injection,",
    "A mutex is a",
    "1, 1, 2, 3, 5, 8, 13,",
    "Once upon a time, in a village by the sea,",
    "Il était une fois",
    "Der schnelle braune Fuchs springt über",
    "import numpy as np\n\n# the mean of each column\n",
    "Q: Who wrote Hamlet?\nA:",
    "The following text repeats a sentence, so that the prompt is longer than the others. " * 4 + "The sentence was:",
)


class Agreement(Struct, frozen=True):
    """Of ``prompts``, ``same_first`` have the same most likely token, ties counted; ``worst_cosine`` is of their logits."""

    prompts: int
    same_first: int
    worst_cosine: float

    @property
    def agrees(self) -> bool:
        return self.same_first == self.prompts and self.worst_cosine >= MIN_COSINE

    def __str__(self) -> str:
        return f"the same next token for {self.same_first} of {self.prompts} prompts, cosine at least {self.worst_cosine:.4f}"


def agreement(expected: NDArray[np.float32], got: NDArray[np.float32]) -> Agreement:
    """Compare logits, shape [prompts, vocabulary] each; values that are no numbers agree with nothing."""
    import numpy as np

    if expected.shape != got.shape:
        return Agreement(len(expected), 0, -1.0)
    same, worst = 0, 1.0
    for one, other in zip(expected.astype(np.float64), got.astype(np.float64), strict=True):
        length = float(np.linalg.norm(one) * np.linalg.norm(other))
        cosine = float(one @ other) / length if length > 0 and np.isfinite(length) else -1.0
        worst = min(worst, cosine)
        tie = _TIE * float(one.max() - one.mean())
        same += cosine > -1.0 and float(one.max() - one[int(other.argmax())]) <= tie
    return Agreement(len(expected), int(same), worst)
