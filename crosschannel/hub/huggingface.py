"""Download from and upload to the Hugging Face Hub, with the ``huggingface_hub`` library and its cache."""

from pathlib import Path

from crosschannel.errors import UserError
from crosschannel.hub.network import downloading_from_hub

FILES = ("backbone.safetensors", "colorizer.safetensors", "pretext.safetensors", "README.md")


def fetch_repository(name: str) -> Path:
    """Download the weights of a repository, or use the local cache if the Hub is unreachable.

    Returns:
        Folder of the files.

    Raises:
        UserError: the repository does not exist, or is neither reachable nor cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

    check_repository(name)
    try:
        with downloading_from_hub(f"hf-hub:{name}"):
            return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except RepositoryNotFoundError:
        raise UserError(f"repository {name!r} does not exist on the Hugging Face Hub, or is private") from None
    except (LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"hf-hub:{name} is not cached and could not be downloaded: {reason}") from None


def check_repository(name: str) -> None:
    """Raise a UserError for an invalid repository name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        if name.count("/") != 1 or name.startswith("/") or name.endswith("/"):
            raise HFValidationError(name)
    except HFValidationError:
        raise UserError(f"{name!r} is not a valid repository name for the Hugging Face Hub; use owner/name") from None


def push_folder(folder: Path, name: str, private: bool = False) -> str:
    """Upload a folder to a repository, which is created if it does not exist.

    Returns:
        URL of the repository.

    Raises:
        UserError: the user is not logged in or lacks permission, or the Hub is unreachable.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError

    api = HfApi()
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="Upload weights")
    except HFValidationError:
        raise UserError(f"{name!r} is not a valid repository name for the Hugging Face Hub; use owner/name") from None
    except LocalTokenNotFoundError:
        raise UserError("not logged in to the Hugging Face Hub: run `hf auth login`") from None
    except Exception as error:  # the exceptions depend on the HTTP library
        raise UserError(f"could not push to {name}: {(str(error).splitlines() or [type(error).__name__])[0]}") from None
    return f"https://huggingface.co/{name}"
