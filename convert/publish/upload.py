"""Sends an exported folder to a hub, once its checksums hold. It knows nothing of what is in the folder.

The hub is HF_ENDPOINT (default huggingface.co); the token is HF_TOKEN or the hub's own login.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from convert.publish.checksums import check_sums
from convert.publish.exported import KIND
from slm.artifacts import read_manifest
from slm.errors import InputError, UploadError
from slm.models.catalog import is_hub_id
from slm.models.hub import endpoint


def check_upload(repository: str) -> str:
    """The token to upload with. Raises InputError for a name that is none, and where there is no token."""
    from huggingface_hub import get_token

    if not is_hub_id(repository):
        raise InputError(f"'{repository}' is no repository", hint="Write it as OWNER/NAME.")
    token = get_token()
    if not token:
        raise InputError(
            "uploading needs a token of the hub, and there is none",
            hint="Set HF_TOKEN to one that may write, or log in with the hub's own command: hf auth login",
        )
    return token


def upload_export(folder: Path, repository: str, *, private: bool = True) -> dict[str, Any]:
    """Upload an export in one commit, into a repository that is made when needed; {repository, url, commit}.

    Files of the repository that are not in the folder stay. Raises the errors of `check_upload`, MissingFileError,
    DamagedFileError (not as it was exported), UploadError.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from slm.terminal.console import err

    token = check_upload(repository)
    manifest = read_manifest(folder)
    if manifest.get("kind") != KIND:
        raise InputError(f"'{folder}' is no export", hint="Make one with: slm export DIR --model MODEL")
    check_sums(folder)
    if err().quiet or not err().is_terminal:
        disable_progress_bars()
    hub = HfApi(endpoint=endpoint(), token=token)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        sent = hub.upload_folder(
            repo_id=repository, folder_path=folder, commit_message=f"{manifest['name']}, slm-cpu {manifest['version']}",
            ignore_patterns=[".git/*", ".cache/*"],
        )  # fmt: skip
    except (TransportError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()
        raise UploadError(
            f"'{repository}' was not uploaded to {endpoint()}: {first[0] if first else type(error).__name__}",
            hint=f"Nothing is lost; send it again with: slm export {folder} --upload {repository}",
        ) from error
    return {"repository": repository, "url": f"{endpoint()}/{repository}", "commit": sent.oid}
