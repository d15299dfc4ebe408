"""How a worker sends its answer: each token at once, or gathered for a moment, and always the same text."""

from __future__ import annotations

from pathlib import Path

from conftest import MODEL

from coe_cli.core.model_spec import spec_from_folder
from coe_cli.runtime import protocol
from coe_cli.runtime.one_shot import begin_loading
from coe_cli.runtime.worker_process import WorkerProcess

PROMPT = "Tell a long story about a lighthouse keeper, his daughter, a storm and a ship."


def answer(worker: WorkerProcess, number: int, **fields: object) -> tuple[list[protocol.Token], protocol.Done]:
    worker.send(
        protocol.Generate(
            request_id=number,
            messages=[protocol.ChatMessage("user", PROMPT)],
            context_length=512,
            sampling=protocol.Sampling(temperature=0),
            **fields,  # type: ignore[arg-type]
        )
    )
    pieces: list[protocol.Token] = []
    while not isinstance(message := worker.receive(60), protocol.Done):
        if isinstance(message, protocol.Token):
            pieces.append(message)
    return pieces, message


def test_gathered_tokens_are_the_same_text_in_fewer_messages(models_dir: Path) -> None:
    worker = WorkerProcess()
    try:
        begin_loading(worker, spec_from_folder(MODEL, models_dir / MODEL))
        while not isinstance(worker.receive(60), protocol.Loaded):
            pass
        single, done = answer(worker, 1, max_tokens=40)
        assert len(single) == 40 == done.completion_tokens, "each token at once"
        assert {piece.tokens for piece in single} == {1}
        gathered, done = answer(worker, 2, max_tokens=40, flush_s=3600.0)
        assert [piece.tokens for piece in gathered] == [1, 39], "the first at once, the rest with the last"
        assert "".join(piece.text for piece in gathered) == "".join(piece.text for piece in single)
        assert done.completion_tokens == 40
        word = single[20].text.strip()
        stopped, done = answer(worker, 3, max_tokens=40, flush_s=3600.0, stop=[word])
        before, _ = answer(worker, 4, max_tokens=40, stop=[word])
        assert "".join(piece.text for piece in stopped) == "".join(piece.text for piece in before)
        assert word not in "".join(piece.text for piece in stopped) and done.finish_reason == "stop"
    finally:
        worker.kill()
