"""The Hub's errors: a status, the code that clients turn into an exception, and a sentence."""

from __future__ import annotations


class HubError(Exception):
    """Answered as JSON with the headers `X-Error-Code` and `X-Error-Message`."""

    def __init__(
        self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = {"X-Error-Message": message, **(headers or {})}
        if code is not None:
            self.headers["X-Error-Code"] = code


def repo_not_found(repo_id: str) -> HubError:
    return HubError(404, "RepoNotFound", f"Repository not found: {repo_id}")


def revision_not_found(revision: str) -> HubError:
    return HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


def entry_not_found(path: str, commit: str) -> HubError:
    return HubError(404, "EntryNotFound", f"Entry not found: {path}", {"X-Repo-Commit": commit})


def bad_request(message: str) -> HubError:
    return HubError(400, None, message)


def conflict(message: str) -> HubError:
    return HubError(409, None, message)
