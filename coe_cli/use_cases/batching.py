"""The steps of `coe batch`: check where it reads and writes, choose the profile, run it, say what came of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from msgspec import structs

from coe_cli.core.hardware.profile import HardwareProfile, ProfileSet
from coe_cli.core.models.catalog import Catalog
from coe_cli.core.routing.selection import choose_model
from coe_cli.core.text_encoding import MARK_BYTES, encoding_of
from coe_cli.errors import UsageError
from coe_cli.output.batch_view import TerminalBatchView
from coe_cli.output.console import Output
from coe_cli.runtime.batch.batch import BatchJob, run_batch
from coe_cli.runtime.batch.batch_engine import Engine, RowSource
from coe_cli.runtime.batch.batch_index import bulk_router
from coe_cli.runtime.batch.client_engine import client_engine, refuse_what_cannot_fit
from coe_cli.runtime.client.client import Client
from coe_cli.runtime.college.college_profile import college_profile
from coe_cli.runtime.college.costs import cost_in
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import folders
from coe_cli.runtime.model_folder.on_disk import models_on_disk
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.use_cases.clients import CollegePlace, serve_options


@dataclass(frozen=True)
class BatchOptions:
    """What the user asked for; None leaves the choice to coe, the profile or the rows."""

    job: BatchJob
    """As the user named input and output, which may be pipes."""
    retries: int
    concurrency: int | None
    engine: str
    address: str | None
    pull: bool
    quiet: bool
    place: CollegePlace


def run(options: BatchOptions, catalog: Catalog, profiles: ProfileSet, output: Output) -> int:
    """Run a batch and return how many rows have an error.

    Raises:
        CoeError: whatever keeps the batch from being run to its end.
    """
    named = options.job
    source, target = _source(named.source), _target(named.target)
    if source is not None and target is not None and source.exists() and target.exists() and source.samefile(target):
        raise UsageError(f"{target} is the input and the output", "Give the output another name.")
    if options.engine == "ray":
        from coe_cli.runtime.fleet.ray_cluster import check_installed

        check_installed()
    where = folders()
    profile = college_profile(profiles, options.place.profile, catalog, where)
    _provide_a_model(options, catalog, output)
    with (
        _stream(named.source if source is None else None, "rb") as stdin,
        _stream(named.target if target is None else None, "wb") as stdout,
        TerminalBatchView(output, quiet=options.quiet) as view,
    ):
        progress = run_batch(
            replace(named, source=source, target=target, stdin=stdin, stdout=stdout),
            RequestResolver(catalog, where.models, profile, SharedRouter(catalog, where, profile.provider)),
            bulk_router(catalog, where, profile, view.note, fetch=options.pull, enabled=profiles.routing.enabled),
            lambda rows: _engine(options, rows, catalog, profiles, profile, view.note),
            view,
        )
    view.summary(progress)
    return progress.failed


def _engine(
    options: BatchOptions,
    rows: RowSource,
    catalog: Catalog,
    profiles: ProfileSet,
    profile: HardwareProfile,
    note: Callable[[str], None],
) -> Engine:
    if options.concurrency is not None:
        profile = structs.replace(profile, max_concurrent_slots=options.concurrency)
    if options.engine == "ray":
        from coe_cli.runtime.fleet.ray_setup import ray_engine

        refuse_what_cannot_fit(rows, profile, cost_in(profile))
        return ray_engine(profile, folders().models, address=options.address, retries=options.retries)

    def own(replicas: int | None) -> Client:
        from coe_cli.runtime.client.local import LocalOptions, local_client

        return local_client(catalog, profile, profiles.routing, LocalOptions(batch=True, replicas=replicas))

    def client(replicas: int | None) -> tuple[Client, bool]:
        """The running college, or one that is started for this batch and ends with it."""
        if not options.place.serve:
            return own(replicas), True
        from coe_cli.runtime.client.remote import RemoteClient
        from coe_cli.runtime.server.college_client import running

        there = running()
        if there is not None:
            there.close()
        college = structs.replace(
            serve_options(options.place), slots=options.concurrency, replicas=replicas, owner_pid=os.getpid()
        )
        remote = RemoteClient(college, lambda: own(None), note, leaves_college=False)
        return remote, there is None

    return client_engine(rows, catalog, profile, client, retries=options.retries)


def _source(path: Path | None) -> Path | None:
    """The input if it is a file that can be read more than once; None where it is a stream: stdin, a pipe
    with a name, or text that has to be converted.

    Raises:
        UsageError: there is nothing to read.
    """
    if path is None:
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError("there is no input on stdin", "Name a file, or pipe JSON lines in.")
        return None
    if path.is_dir() or not path.exists():
        raise UsageError(
            f"{path} is a folder" if path.is_dir() else f"{path} does not exist",
            "Name a file of JSON lines, or - for stdin.",
        )
    if not path.is_file() and not path.is_fifo():
        raise UsageError(f"{path} is not a file or pipe", "Name a file of JSON lines, or - for stdin.")
    return path if path.is_file() and not _needs_conversion(path) else None


def _needs_conversion(path: Path) -> bool:
    """Whether it is in UTF-16, as PowerShell writes it: rows are read at their places in UTF-8."""
    try:
        with path.open("rb") as file:
            return not encoding_of(file.read(MARK_BYTES)).startswith("utf-8")
    except OSError:
        return False  # whoever reads it says why it cannot be read


def _target(path: Path | None) -> Path | None:
    """The output if it is a file that can be gone on with; None where it is a stream: stdout or a device.

    Raises:
        UsageError: there is no such folder, or it cannot be written.
    """
    if path is None:
        return None
    if path.exists() and not path.is_file() and not path.is_dir():
        return None
    path = path.resolve()  # which for a pipe is a name that does not exist
    if path.is_dir() or not path.parent.is_dir():
        raise UsageError(
            f"{path} is a folder" if path.is_dir() else f"the folder {path.parent} does not exist",
            "Name a file in a folder that exists.",
        )
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"the folder {path.parent} cannot be written", "Choose an output elsewhere.")
    return path


@contextlib.contextmanager
def _stream(path: Path | None, mode: str) -> Iterator[Any]:
    """A pipe or device that was named as a file; None stands for the standard stream."""
    if path is None:
        yield None
        return
    try:
        file = path.open(mode)
    except OSError as error:
        raise UsageError(f"{path} cannot be opened: {error.strerror or error}", "Name another file.") from None
    with file:
        yield file


def _provide_a_model(options: BatchOptions, catalog: Catalog, output: Output) -> None:
    """Fetch the embedded model where there is none at all, as `coe ask` does."""
    if models_on_disk(folders().models):
        return
    from coe_cli.use_cases.providing import install_model

    choice = choose_model(catalog, [], expert=None, model=None)
    if choice.install:
        install_model(choice.model, catalog, output, pull=options.pull)
