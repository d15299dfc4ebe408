"""How a college is to be started; what starts it and what runs it share these."""

from __future__ import annotations

from msgspec import Struct


class ServeOptions(Struct, frozen=True):
    """How to serve. ``port`` 0 takes a free one; the API key is in the environment.

    ``keep_alive`` is a time as in ``core.duration``; None leaves it to the profile, as ``profile`` None leaves the profile to
    the college. ``prepare_api`` imports the HTTP API at the start instead of at its first use. ``max_queue`` requests may
    wait, more are refused. ``allowed_hosts`` are names in the Host header that a balancer uses for this server.
    ``cors_origins``: web pages that may ask; ``page``: whether there is one at `/`.
    ``open_router``: a question that names nobody is about to come.
    ``slots`` stands in place of the profile's ``max_concurrent_slots``; ``replicas`` as in ``CollegeSettings``. The college
    ends when the process ``owner_pid`` has gone, however that ended.
    """

    host: str = "127.0.0.1"
    port: int = 0
    keep_alive: str | None = None
    profile: str | None = None
    profiles_file: str | None = None
    catalog_file: str | None = None
    log_prompts: bool = False
    prepare_api: bool = False
    max_queue: int = 256
    allowed_hosts: list[str] = []
    cors_origins: list[str] = []
    page: bool = True
    open_router: bool = False
    slots: int | None = None
    replicas: int | None = None
    owner_pid: int | None = None

    def for_batch(self) -> list[str]:
        """The options of a `coe batch` that is to find this college's settings."""
        named = {"--profile": self.profile, "--profiles": self.profiles_file, "--catalog": self.catalog_file}
        return [word for option, value in named.items() if value is not None for word in (option, value)]
