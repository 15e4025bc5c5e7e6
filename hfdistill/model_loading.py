"""What is loaded by a name that a person gave: checked before anything is asked, and explained where it fails.

A name is a folder, or a repository on the hub. Code that comes with a model is run only where the user said so; nobody
is asked on the console.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # public, but not re-exported
from safetensors import SafetensorError

from hfdistill.names import shown

_CODE = re.compile(r"trust_remote_code")


@contextmanager
def explained_loading(name: str | Path, what: str) -> Iterator[None]:
    """Within this context a model, tokenizer or processor is loaded by name; a failure says what to do.

    Args:
        name: a folder or a name on the hub.
        what: it is, for messages: "teacher", "student".

    Raises:
        FileNotFoundError: there is no such folder and no such repository, or it lacks what is to be loaded.
        ValueError: the name is neither, the files are broken, or the model brings code of its own.
    """
    check_model_name(name, what)
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"the {what} {shown(name)} cannot be loaded: {error} Check the name, whether the folder is whole, and, "
            "for a name on the hub, network, login and HF_HUB_OFFLINE."
        ) from error
    except SafetensorError as error:
        raise ValueError(
            f"the weights of the {what} {shown(name)} cannot be read: {error}. Their file is broken or was cut off; "
            "download or copy it again."
        ) from error
    except ValueError as error:
        if not _CODE.search(str(error)):
            raise
        raise ValueError(
            f"the {what} {shown(name)} brings code of its own, which would run on this machine. It is not run unless "
            "you say so: read it, and if you trust its author set trust_remote_code=True (--trust_remote_code)."
        ) from error


def check_model_name(name: str | Path, what: str) -> None:
    """Refuse a name that is neither a folder here nor could be a repository on the hub.

    Raises:
        FileNotFoundError: it is a path, and there is no such folder; or the folder holds no model.
        ValueError: it is no name at all.
    """
    text, folder = str(name), Path(name)
    if not text.strip():
        raise ValueError(f"the {what} is named by an empty text. Give a folder or a name on the hub, 'user/name'.")
    if folder.is_dir():
        held = sorted(path.name for path in folder.iterdir())
        if "adapter_config.json" in held and "config.json" not in held:
            raise ValueError(
                f"the {what} {shown(name)} is an adapter of PEFT, not a whole model. Merge it into its base "
                "(merge_and_unload), save that, and name its folder; or load it and pass the model."
            )
        if not any(name.endswith("config.json") for name in held):
            raise FileNotFoundError(
                f"the folder of the {what} {shown(name)} holds no config.json, but {held[:6] or 'nothing'}. Name the "
                "folder that save_pretrained wrote."
            )
        return
    if folder.is_file():
        raise ValueError(f"the {what} {shown(name)} is a file. Name the folder that save_pretrained wrote.")
    try:
        validate_repo_id(text)
    except HFValidationError as error:
        raise FileNotFoundError(
            f"the {what} {shown(name)} is no folder here ({Path.cwd()}), and no name that the hub could have. Give "
            "the folder of a saved model, or 'user/name'."
        ) from error
