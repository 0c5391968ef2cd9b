"""``hf-hub:owner/name``: a repository of the Hugging Face Hub, through its own library and cache."""

from pathlib import Path

from crosschannel.errors import UserError
from crosschannel.hub.network import downloading_from_hub

FILES = ("backbone.safetensors", "colorizer.safetensors", "pretext.safetensors", "README.md")


def fetch_repository(name: str) -> Path:
    """Return the folder with a repository's weights, from the local cache if the Hub cannot be reached.

    Raises:
        UserError: no such repository, or neither reachable nor cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    check_repository(name)
    try:
        with downloading_from_hub(f"hf-hub:{name}"):
            return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except RepositoryNotFoundError:
        raise UserError(f"the Hugging Face Hub has no repository {name!r} (or it is private)") from None
    except (LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"hf-hub:{name} is not cached and cannot be fetched: {reason}") from None


def check_repository(name: str) -> None:
    """Raise a UserError for a name that no repository can have."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1 or name.startswith("/") or name.endswith("/"):
            raise HFValidationError(name)
    except HFValidationError:
        raise UserError(f"{name!r} is not a repository of the Hugging Face Hub; one looks like owner/name") from None


def push_folder(folder: Path, name: str, private: bool = False) -> str:
    """Create the repository if need be and upload a folder; returns its address.

    Raises:
        UserError: not logged in, no such owner, or the Hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Upload weights")
    except HFValidationError:
        raise UserError(f"{name!r} is not a repository of the Hugging Face Hub; one looks like owner/name") from None
    except LocalTokenNotFoundError:
        raise UserError("not logged in to the Hugging Face Hub: run `hf auth login`") from None
    except Exception as error:  # of the HTTP library, whichever it is
        raise UserError(f"cannot push to {name}: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    return f"https://huggingface.co/{name}"
