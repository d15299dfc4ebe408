"""Where coe keeps its files: models, the user's configuration, state and caches."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from coe_cli.core.units import BYTES_PER_MB

PACKAGE = Path(__file__).resolve().parent.parent
_PROFILES, _CATALOG = "hardware_profiles.yaml", "experts.yaml"


@dataclass(frozen=True)
class Folders:
    """Absolute folders; none of them need exist yet."""

    models: Path
    config: Path
    state: Path
    cache: Path


def folders() -> Folders:
    """The folders of this user.

    ``COE_MODELS_DIR``, ``COE_CONFIG_DIR``, ``COE_STATE_DIR`` and ``COE_CACHE_DIR`` name them; without, models lie under
    ``models/`` of a source checkout or in the user's data folder, the others where the platform keeps such files.
    """
    import platformdirs

    dirs = platformdirs.PlatformDirs("coe", appauthor=False)
    checkout = _checkout()
    return Folders(
        models=_named("COE_MODELS_DIR") or (checkout / "models" if checkout else dirs.user_data_path / "models"),
        config=_named("COE_CONFIG_DIR") or dirs.user_config_path,
        state=_named("COE_STATE_DIR") or dirs.user_state_path,
        cache=_named("COE_CACHE_DIR") or dirs.user_cache_path,
    )


def free_mb(folder: Path) -> float:
    """Room on the disk of ``folder``, which need not exist yet.

    Raises:
        OSError: the disk is not there.
    """
    existing = next((path for path in (folder, *folder.parents) if path.is_dir()), folder)
    return shutil.disk_usage(existing).free / BYTES_PER_MB


def obstacle(folder: Path) -> str:
    """What stands where ``folder`` should be: a file, or a link to a disk that is not there; else ''."""
    with contextlib.suppress(OSError):  # a folder that this user may not look into
        for path in (folder, *folder.parents):
            if path.is_dir():
                break
            if path.is_symlink():
                return f"{path} is a link to {path.readlink()}, which is not there"
            if path.exists():
                return f"{path} is a file"
    return ""


def may_be_there(path: Path) -> bool:
    """Whether there is such a file; one that this user may not look at counts, since reading it says why not."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def own_profiles() -> Path:
    """The user's profile file, which need not exist."""
    return folders().config / _PROFILES


def own_catalog() -> Path:
    """The user's catalog file, which need not exist."""
    return folders().config / _CATALOG


def profile_paths(extra: Path | None = None) -> list[Path]:
    """The profile files in force, the later over the earlier: shipped, the user's, the one named on the command line."""
    return _layers(_PROFILES, extra)


def catalog_paths(extra: Path | None = None) -> list[Path]:
    """The catalog files in force, the later over the earlier: shipped, the user's, the one named on the command line."""
    return _layers(_CATALOG, extra)


def _layers(name: str, extra: Path | None) -> list[Path]:
    checkout = _checkout()
    shipped = checkout / "profiles" / name if checkout else PACKAGE / "profiles" / name
    own = folders().config / name
    return [shipped, *([own] if may_be_there(own) else []), *([extra] if extra else [])]


def _checkout() -> Path | None:
    root = PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "profiles").is_dir() else None


def _named(variable: str) -> Path | None:
    value = os.environ.get(variable)
    return Path(value).expanduser().absolute() if value else None
