"""A worker that speaks the real protocol without a model and misbehaves on request.

Usage: faulty_worker.py FOLDER. ``FOLDER/faults.json`` maps a model's name to a list of faults, one for each of its starts
(the last one stays); a fault is a map with any of:

- ``before``: text written to the channel before the protocol begins; ``version``: protocol version that it claims
- ``load``: oom, hang, crash, damaged; ``load_s``: seconds that a load takes
- ``answer``: oom, device_lost, hang, crash, garbage; ``after``: so many tokens are written before
- ``stubborn``: SIGTERM is ignored, and a child of its own holds the channel open
- ``step_s``: seconds between two tokens; ``together``: no token before so many processes have been started in all, and
  ``side_by_side``: none before so many answers have begun; ``hold``: a file and a number, none from when the file has so many
  lines until there is a ``FOLDER/go_on``

Every process writes its id into ``FOLDER/pids``, and makes ``FOLDER/hangs-ID`` when it is to hang. The answer to a prompt is the same in every process: ``expected``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, BinaryIO

sys.path.insert(0, str(Path(__file__).parents[1]))

from coe_cli.runtime.worker import protocol


def expected(prompt: str, seed: int | None, tokens: int) -> str:
    """The answer that the worker gives when it is left alone."""
    return "".join(f"{zlib.crc32(f'{prompt}/{seed}/{number}'.encode()) % 1000} " for number in range(tokens))


class FaultyWorker:
    """One process; running answers take turns, one token each, as in the real worker."""

    def __init__(self, folder: Path, channel: BinaryIO) -> None:
        self._folder = folder
        self._channel = channel
        self._fault: dict[str, Any] = {}
        self._inbox: SimpleQueue[protocol.ToWorker | protocol.Failed] = SimpleQueue()
        self._running: dict[int, tuple[protocol.Generate, list[str]]] = {}
        self._written = 0

    def serve(self, stdin: BinaryIO) -> None:
        threading.Thread(target=self._listen, args=(stdin,), daemon=True).start()
        while True:
            try:
                waits = not self._written and len(self._running) < self._fault.get("side_by_side", 1)
                message = self._inbox.get(block=not self._running or waits)
            except Empty:
                self._step()
                continue
            if isinstance(message, protocol.Load):
                self._load(message)
            elif isinstance(message, protocol.Generate):
                limit = message.max_tokens or 8
                words = expected(bytes(message.prompt_ids).decode(), message.sampling.seed, limit).split()
                self._running[message.request_id] = (message, words)
                self._send(protocol.Started(message.request_id, 7))
            elif isinstance(message, protocol.Cancel) and message.request_id in self._running:
                self._done(message.request_id, "cancelled")

    def _load(self, message: protocol.Load) -> None:
        time.sleep(self._fault.get("load_s", 0))
        kind = self._fault.get("load")
        if kind == "oom":
            self._send(protocol.Failed("out_of_memory", "the device has no memory left", "Choose a smaller model."))
        elif kind == "damaged":
            self._send(protocol.Failed("model_damaged", "the file is torn", "Fetch it again."))
        else:
            self._misbehave(kind)
            self._send(protocol.Loaded(0.01))

    def _step(self) -> None:
        while len(list(self._folder.glob("*.start-*"))) < self._fault.get("together", 0):
            time.sleep(0.05)
        while "hold" in self._fault and self._holds(*self._fault["hold"]):
            time.sleep(0.01)
        time.sleep(self._fault.get("step_s", 0.001))
        kind = self._fault.get("answer")
        request_id, (_, words) = next(iter(self._running.items()))
        if kind is not None and self._written >= self._fault.get("after", 0):
            if kind in ("oom", "device_lost"):
                code = "out_of_memory" if kind == "oom" else kind
                self._send(protocol.Failed(code, "887A0005: the device was removed", "", request_id))
                self._running.clear()
                return
            self._misbehave(kind)
        self._written += 1
        self._send(protocol.Token(request_id, words.pop(0) + " "))
        self._running[request_id] = self._running.pop(request_id)
        if not words:
            self._done(request_id, "length")

    def _holds(self, file: str, lines: int) -> bool:
        there = Path(file).exists() and not (self._folder / "go_on").exists()
        return there and Path(file).read_bytes().count(b"\n") >= lines

    def _done(self, request_id: int, reason: protocol.FinishReason) -> None:
        generate, words = self._running.pop(request_id)
        written = (generate.max_tokens or 8) - len(words)
        self._send(protocol.Done(request_id, reason, 7, written, 0.001, 0.001))

    def _misbehave(self, kind: str | None) -> None:
        if kind == "hang":
            (self._folder / f"hangs-{os.getpid()}").touch()
            time.sleep(1000)
        elif kind == "crash":
            sys.stderr.write("faulty_worker: crashed as asked\n")
            sys.stderr.flush()
            os._exit(41)
        elif kind == "garbage":
            self._channel.write(b"Killed by garbage in the channel\n")
            self._channel.flush()
            time.sleep(1000)

    def _send(self, message: protocol.Message) -> None:
        protocol.write(self._channel, message)

    def _listen(self, stdin: BinaryIO) -> None:
        try:
            while (message := protocol.read_to_worker(stdin)) is not None:
                if isinstance(message, protocol.Load):
                    self._begin(Path(message.folder).name)
                self._inbox.put(message)
        finally:  # also where nobody hears its greeting any more
            if not self._fault.get("stubborn"):
                os._exit(0)

    def _begin(self, model: str) -> None:
        """Take the fault of this start of ``model`` and say hello."""
        path = self._folder / "faults.json"
        faults = json.loads(path.read_text()).get(model, []) if path.exists() else []
        start = 0
        while True:
            try:
                (self._folder / f"{model}.start-{start}").touch(exist_ok=False)
                break
            except FileExistsError:
                start += 1
        self._fault = faults[min(start, len(faults) - 1)] if faults else {}
        if "before" in self._fault:
            self._channel.write(self._fault["before"].encode())
            self._channel.flush()
        if self._fault.get("stubborn"):
            nap = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1000)"
            child = subprocess.Popen([sys.executable, "-S", "-c", nap], stdin=subprocess.DEVNULL)
            self._note_pid(child.pid)
        version = self._fault.get("version", protocol.PROTOCOL_VERSION)
        self._send(protocol.Hello(version, "faulty", os.getpid()))

    def _note_pid(self, pid: int) -> None:
        with (self._folder / "pids").open("a") as file:
            file.write(f"{pid}\n")


def main() -> None:
    if hasattr(signal, "SIGTERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    worker = FaultyWorker(Path(sys.argv[1]), sys.stdout.buffer)
    worker._note_pid(os.getpid())
    try:
        worker.serve(sys.stdin.buffer)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
