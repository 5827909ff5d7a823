"""A path, or the id of a model on the Hugging Face Hub, to a local directory.

What exists on the disk is a path; `owner/name` that does not is an id. Files come through `huggingface_hub`:
its cache (also filled by other tools), its resume and its progress bar. Only what this package reads is
fetched: JSON, safetensors, the chat template and the model card (its licence binds), never code."""

import re
from pathlib import Path

from stablelm.config import InputError

PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.jinja", "README.md"]
_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    cache_dir: str | Path | None = None,
    patterns: list[str] = PATTERNS,
) -> Path:
    """The directory (or file) that `name` means; downloads it when it is a Hub id that the cache does not
    hold.

    `InputError` says what to do when there is no such path or id, no network, or no permission."""
    path = Path(name)
    if path.exists() or not _ID.fullmatch(str(name)):
        return path
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    at = f"{name}" + (f" at revision {revision}" if revision else "")
    try:
        return Path(
            snapshot_download(
                str(name),
                revision=revision,
                token=token,
                local_files_only=local_files_only,
                cache_dir=cache_dir,
                allow_patterns=patterns,
            )
        )
    except hub.GatedRepoError:
        remedy = "accept its terms on its page, then give your access token (token=…, or `hf auth login`)"
    except hub.RevisionNotFoundError:
        remedy = "there is no such revision; leave it out, or name a branch, tag or commit that exists"
    except hub.RepositoryNotFoundError:
        remedy = (
            "no such directory, and no such model on the Hugging Face Hub (if it is private, give token=…)"
        )
    except (hub.LocalEntryNotFoundError, hub.IncompleteSnapshotError, OSError) as error:
        asked = (
            "local_files_only was asked for" if local_files_only else "the Hugging Face Hub cannot be reached"
        )
        remedy = (
            f"no such directory, not in the local cache, and {asked} ({type(error).__name__}). Connect, set "
            "HF_ENDPOINT to a mirror, or copy the model here and give its directory"
        )
    except hub.HFValidationError as error:
        remedy = f"no such directory, and not a Hub id ({error})"
    except hub.HfHubHTTPError as error:
        remedy = f"the Hugging Face Hub refused: {error}"
    raise InputError(f"{at}: {remedy}.")
