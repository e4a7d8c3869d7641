"""Models by their names on the hub: from its cache at once if the hub cannot be reached, and one line if that fails.

By itself, the hub's client tries each file six times before it looks into its cache: a minute and a half for a name
that is misspelt on a machine without network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from groundtune.system.text import one_line

PATIENCE = 5.0  # seconds
_NO_HUB = {407, 502, 503, 504}  # what a proxy answers in place of the hub, and the hub while it is down


class HubError(ValueError):
    """The hub does not give a model; the message is the whole line that a user needs."""


@contextmanager
def cache_if_no_hub() -> Iterator[str]:
    """Set the hub's client offline inside if the hub cannot be reached; gives the reason, which is else empty."""
    from huggingface_hub import constants

    before, why = constants.HF_HUB_OFFLINE, why_no_hub()
    constants.HF_HUB_OFFLINE = bool(why)
    try:
        yield why
    finally:
        constants.HF_HUB_OFFLINE = before


@contextmanager
def from_hub(name: str) -> Iterator[None]:
    """For use while a library loads a model by its name on the hub. Raises `HubError` if the hub is the reason that it
    cannot; other errors stay."""
    _check_name(name)
    with cache_if_no_hub() as no_hub:
        try:
            yield
        except Exception as error:
            if line := _why_not_given(name, error, no_hub):
                raise HubError(line) from error
            raise


def comes_of_being_offline(error: BaseException | None) -> bool:
    """Whether an error, or what led to it, is that of a client that may not use the network."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    return _cause(error, LocalEntryNotFoundError) is not None or _cause(error, OfflineModeIsEnabled) is not None


def why_no_hub() -> str:
    """Why the hub cannot be reached; empty if it can."""
    from huggingface_hub import constants

    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _no_answer_from(constants.ENDPOINT)


@cache  # asked once a process
def _no_answer_from(address: str) -> str:
    """Why an address gives no answer within `PATIENCE` through the proxy, if one is set; empty if it answers."""
    found = [f"no answer within {PATIENCE:g} s"]

    def ask() -> None:
        from huggingface_hub import get_session

        try:
            status = get_session().head(address, timeout=PATIENCE).status_code
            found.append(f"status {status}" if status in _NO_HUB else "")
        except Exception as error:  # the client's own kinds differ between its versions
            found.append(one_line(error, 120))

    # A thread, as the time to look up a host's name has no limit of its own.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return found[-1]


def _check_name(name: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise HubError(f"{name}: no such folder, and not a name on the hub (owner/model); check the path") from error


def _why_not_given(name: str, error: Exception, no_hub: str) -> str:
    """The line that says why the hub, or the cache in its place, did not give the model; empty for other errors."""
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    if isinstance(error, HubError):
        return str(error)
    if no_hub and comes_of_being_offline(error):
        cached = "not whole in the cache" if _is_cached(name) else "not in the cache"
        why = f"the hub cannot be reached ({no_hub})"
        return f"{name}: not a folder here, {cached}, and {why}; check the name or the network"
    if _cause(error, RevisionNotFoundError):
        return f"{name}: the hub has no such revision of it; check the revision"
    refused = _cause(error, HfHubHTTPError)
    return _refusal(name, refused) if refused else ""


def _refusal(name: str, refused: Any) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    status = refused.response.status_code
    if isinstance(refused, GatedRepoError):
        page = f"{constants.ENDPOINT}/{name}"
        return f"{name}: gated on the hub ({status}); ask for access at {page}, then log in: hf auth login"
    if isinstance(refused, RepositoryNotFoundError):
        why = f"not a folder here, and not a model that the hub shows you ({status})"
        return f"{name}: {why}; check the name or, for a private model, log in: hf auth login"
    return f"{name}: the hub refuses it ({status}); log in: hf auth login" if status in (401, 403) else ""


def _is_cached(name: str) -> bool:
    """Whether some revision of a model, maybe not whole, is in the hub's cache."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    return os.path.isdir(os.path.join(HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots"))


def _cause(error: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """The first error of a kind among an error and what led to it."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__ or error.__context__
    return error
