"""Names that a person gives and that become something else: a folder, a key of the log. And what no text may show.

A name is checked before anything is written under it: "../x" would leave the output folder, "a/b" would nest in it,
and "con" cannot be made on Windows.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LONGEST = 100  # of a folder's name: every file system takes 255 bytes, and files in it have names of their own
_TERM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")
_NOT_IN_FOLDERS = re.compile(r'[/\\<>:"|?*\x00-\x1f\x7f]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
# a token of the hub as it looks since 2022, and a login in the address of anything
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}")
_LOGIN = re.compile(r"(?<=://)[^/@\s]+@")


def check_folder_names(names: Iterable[object], what: str) -> None:
    """Refuse names that cannot each be the name of one folder of their own, on any system.

    Args:
        names: of the folders.
        what: they are, for messages: "arm".

    Raises:
        TypeError: one is no text.
        ValueError: one is no folder's name, or two would share a folder.
    """
    seen: dict[str, str] = {}
    for name in names:
        check_folder_name(name, what)
        other = seen.get(str(name).lower())
        if other is not None:
            raise ValueError(
                f"the {what}s {other!r} and {name!r} would share a folder, on some system if not on this one. Give "
                "each a name of its own, not in small and large letters alone."
            )
        seen[str(name).lower()] = str(name)


def check_folder_name(name: object, what: str) -> None:
    """Refuse what is not the name of one folder, on any system.

    Args:
        name: what was given.
        what: it names, for the message.

    Raises:
        TypeError: `name` is no text.
        ValueError: it is empty, would lead elsewhere, or cannot be made on some system.
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of an {what} must be text, got {name!r} ({type(name).__name__}). Quote it in YAML.")
    objections = {
        "is empty": not name.strip(),
        "leads elsewhere": name in (".", ".."),
        "holds a character that some system does not take in a name": bool(_NOT_IN_FOLDERS.search(name)),
        "begins or ends with a space, or ends with a dot": name != name.strip() or name.endswith("."),
        "is the name of a device on Windows": bool(_DEVICES.fullmatch(name)),
        f"is longer than {_LONGEST} characters": len(name) > _LONGEST,
    }
    for reason, holds in objections.items():
        if holds:
            raise ValueError(
                f"the {what} {shown(name)} {reason}, and a folder is named after it. Use letters, digits, '-', '_' "
                "and '.', such as 'kd_t4'."
            )


def check_term_name(name: str) -> None:
    """Refuse a name of an objective's term that is no key of a log and no name of a module.

    Raises:
        ValueError: it holds something else than letters, digits, "_" and "-".
    """
    if not _TERM.fullmatch(name) or len(name) > _LONGEST:
        raise ValueError(
            f"the objective's term {shown(name)} is not called by letters, digits, '_' and '-'. Its value is logged "
            "as loss/<name> and its parts are saved as <name>.<part>; call it for example 'hidden'."
        )


def shown(text: object, longest: int = 80) -> str:
    """A name in quotes for a message: cut where it is long, and without tokens."""
    quoted = repr(without_secrets(str(text)))
    return quoted if len(quoted) <= longest else f"{quoted[:longest]}...'"


def without_secrets(text: str) -> str:
    """A text without tokens of the hub and without logins in addresses."""
    return _LOGIN.sub("", _TOKEN.sub("hf_...", text))
