"""`coe batch` on workers without a model: batch_driver.py FAULTS_FOLDER INPUT OUTPUT [--keep-order] [--fail-fast].

Everything but the worker processes is what the command itself uses: resolver, journal, college, view. ``COE_TEST_FSIZE`` is
the largest file that may be written, in bytes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from byte_prompts import BytePrompts

from coe_cli.errors import CoeError
from coe_cli.output.batch_view import TerminalBatchView
from coe_cli.output.console import Output
from coe_cli.output.errors import write_error
from coe_cli.runtime.batch.batch import BatchJob, run_batch
from coe_cli.runtime.batch.batch_index import RowDefaults, bulk_router
from coe_cli.runtime.batch.client_engine import client_engine
from coe_cli.runtime.client.client import Client
from coe_cli.runtime.client.local import LocalOptions, local_client
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.folders import catalog_paths, folders, profile_paths
from coe_cli.runtime.routing.shared_router import SharedRouter
from coe_cli.runtime.settings import load_catalog, load_profiles


def main() -> int:
    faults, source, target = (Path(argument).absolute() for argument in sys.argv[1:4])
    limit = os.environ.get("COE_TEST_FSIZE")
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
    where, catalog = folders(), load_catalog(catalog_paths())
    profile = load_profiles(profile_paths()).select(os.environ.get("COE_TEST_PROFILE", "embedded"))
    worker = [sys.executable, str(Path(__file__).with_name("faulty_worker.py")), str(faults)]
    output = Output()

    def client(replicas: int | None) -> tuple[Client, bool]:
        options = LocalOptions(batch=True, replicas=replicas, worker_command=worker, prompts=BytePrompts())
        return local_client(catalog, profile, options=options), True

    job = BatchJob(
        source, target, RowDefaults(), keep_order="--keep-order" in sys.argv, fail_fast="--fail-fast" in sys.argv
    )
    try:
        with TerminalBatchView(output) as view:
            progress = run_batch(
                job,
                RequestResolver(catalog, where.models, profile, SharedRouter(catalog, where, profile.provider)),
                bulk_router(catalog, where, profile, view.note, fetch=False),
                lambda rows: client_engine(rows, catalog, profile, client, retries=2),
                view,
            )
        view.summary(progress)
    except CoeError as error:
        write_error(sys.stderr, error, as_json=False)
        return error.exit_code
    return 1 if progress.failed else 0


if __name__ == "__main__":
    sys.exit(main())
