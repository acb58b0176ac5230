"""A folder or hub id becomes a folder on this disk.

Owns what is fetched, settings before weights and never code, and what is said where nothing comes.
"""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from narrowtune.core.errors import ModelError

_SETTINGS = ["*.json", "*.jinja", "*.txt", "*.model"]

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token that may read it"
_STATUS = re.compile(r"\d{3} \w+ Error\.?( \([^)]*\))?[.:]?")
"""An answer's code and number, which the hub's library puts into a paragraph of their own."""


def find_folder(source: str, revision: str | None, *, weights: bool = True) -> Path:
    """Return the folder of a model, fetched unless it is on this disk.

    Args:
        source: a folder or a hub id.
        revision: commit, tag or branch of a hub id.
        weights: whether they are fetched too.

    Raises:
        ModelError: there is no such folder, and the hub doesn't give it.
    """
    asked = f"load the model {source!r}" + (f" at revision {revision!r}" if revision else "")
    local = Path(source).expanduser()
    if local.is_dir():
        if revision:
            raise ModelError(asked, "a local folder, which has no revisions", "leave it out")
        return local
    try:
        # Settings come first: a model that must be refused is refused before its weights.
        folder = Path(
            snapshot_download(
                source, revision=revision, allow_patterns=_SETTINGS, ignore_patterns=["*/*"]
            )
        )
        if not (folder / "config.json").is_file():
            raise ModelError(asked, "a hub repository without config.json", "check the id")
        if not weights:
            return folder
        return Path(
            snapshot_download(
                source,
                revision=revision,
                allow_patterns=[*_SETTINGS, "model*.safetensors"],
                ignore_patterns=["*/*"],
            )
        )
    except HFValidationError:
        raise ModelError(
            asked, "no such folder, and no valid hub id", "check the path for typing errors"
        ) from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            asked,
            f"no such folder, and the hub can't give it: {_reason(error)}",
            _advice(error),
        ) from None


def _advice(error: Exception) -> str:
    if isinstance(error, GatedRepoError):
        return f"accept the terms on the model's page, then {_LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return f"check the path or id; if the model is private, {_LOG_IN}"
    return (
        "check the path or id; without network, download the model elsewhere and give its "
        "folder; if HF_HUB_OFFLINE is set, only models in the local cache are found"
    )


def _reason(error: Exception) -> str:
    """Return the first paragraph of an error that says more than the answer's code, in one line."""
    said = []
    for paragraph in re.split(r"\n\s*\n", str(error)):
        line = " ".join(paragraph.split())
        if line:
            said.append(line)
            if not _STATUS.fullmatch(line):
                break
    return " ".join(said) or type(error).__name__
