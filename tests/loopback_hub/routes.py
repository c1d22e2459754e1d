"""What the Hub answers: one function an endpoint, from a parsed request to a response."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, unquote, urlencode

from .commits import CommitRequest
from .errors import HubError, bad_request, conflict, repo_not_found

if TYPE_CHECKING:
    from .repository import Repository
    from .server import LoopbackHub


@dataclass(frozen=True)
class Call:
    """A request as the endpoints see it: `arguments` are the named groups of the route."""

    hub: LoopbackHub
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    body: bytes
    arguments: dict[str, str]

    @property
    def repository(self) -> Repository:
        repository = self.hub.repository(self.arguments["repo"], self.arguments.get("kind", "models"))
        if not repository.exists:
            raise repo_not_found(self.arguments["repo"])
        return repository

    @property
    def commit(self) -> str:
        return self.repository.resolve(self.arguments.get("revision") or "main")

    def json(self) -> dict:
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise bad_request(f"The body is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise bad_request("The body must be a JSON object")
        return value

    def flag(self, name: str) -> bool:
        return self.query.get(name, ["false"])[0].lower() in ("1", "true")


@dataclass(frozen=True)
class Response:
    """A status, a body and headers; the server adds `Content-Length`."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        body = json.dumps(value).encode()
        return cls(body, status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})})

    @classmethod
    def error(cls, error: HubError) -> Response:
        return cls.json({"error": error.message}, error.status, error.headers)


Endpoint = Callable[[Call], Response]
_ROUTES: list[tuple[str, re.Pattern, Endpoint]] = []
_NAME = r"\w[\w.-]*"
_REPO = rf"(?P<repo>{_NAME}/{_NAME})"
_KIND = r"(?P<kind>kernels|models)"  # not in the address of a model's file
_USER = "loopback"  # whose namespace a repository gets when its id has none


def route(method: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Register an endpoint; `{kind}`, `{repo}`, `{revision}` and `{path}` in the pattern become arguments."""
    pattern = pattern.replace("{kind}", _KIND).replace("{repo}", _REPO)
    pattern = re.sub(r"\{(revision|name)\}", r"(?P<\1>[^/]+)", pattern).replace("{path}", "(?P<path>.+)")

    def register(endpoint: Endpoint) -> Endpoint:
        _ROUTES.append((method, re.compile(pattern), endpoint))
        return endpoint

    return register


def answer(hub: LoopbackHub, method: str, target: str, headers: dict[str, str], body: bytes) -> Response:
    """Find the endpoint of a request and run it; a `HubError` becomes the answer it describes."""
    path, _, query = target.partition("?")
    for verb, pattern, endpoint in _ROUTES:
        if verb == method.replace("HEAD", "GET") and (match := pattern.fullmatch(path)):
            arguments = {key: unquote(value) for key, value in match.groupdict().items() if value}
            try:
                return endpoint(Call(hub, path, parse_qs(query), headers, body, arguments))
            except HubError as error:
                return Response.error(error)
            except Exception as error:
                return Response.error(HubError(500, None, f"{type(error).__name__}: {error}"))
    return Response.error(HubError(404, None, f"No such endpoint: {method} {path}"))


# Accounts


@route("GET", "/api/organizations/{name}/overview")
def organization(call: Call) -> Response:
    name = call.arguments["name"]
    trusted = name in call.hub.trusted
    if not trusted and not call.hub.has_namespace(name):
        raise HubError(404, None, f"Organization not found: {name}")
    return Response.json({"name": name, "fullname": name, "avatarUrl": "", "trustedKernelPublisher": trusted})


@route("GET", "/api/whoami-v2")
def whoami(call: Call) -> Response:
    return Response.json({"type": "user", "name": _USER, "fullname": _USER, "orgs": []})


@route("POST", "/api/validate-yaml")
def validate_yaml(call: Call) -> Response:
    return Response.json({"errors": [], "warnings": []})


# Repositories and their references


def _page(repo_id: str, kind: str) -> str:
    return f"/{repo_id}" if kind == "models" else f"/{kind}/{repo_id}"


@route("POST", "/api/repos/create")
def create(call: Call) -> Response:
    request = call.json()
    kind = request.get("type") or "model"
    if kind not in ("kernel", "model"):
        raise bad_request(f"This Hub keeps repositories of type 'kernel' and 'model', got {kind!r}")
    repo_id = f"{request.get('organization') or _USER}/{request.get('name')}"
    if not re.fullmatch(_REPO, repo_id):
        raise bad_request(f"Invalid repository name: {repo_id!r}")
    url = {"url": call.hub.url + _page(repo_id, f"{kind}s"), "name": repo_id}
    repository = call.hub.repository(repo_id, f"{kind}s")
    if repository.exists:
        return Response.json({"error": f"You already created this {kind} repo", **url}, 409)
    repository.create()
    return Response.json(url)


@route("GET", "/api/{kind}/{repo}")
@route("GET", "/api/{kind}/{repo}/revision/{revision}")
def info(call: Call) -> Response:
    commit = call.commit
    moment = datetime.fromtimestamp(call.repository.objects.read_commit(commit).time, timezone.utc)
    repo_id = call.arguments["repo"]
    fields = {"private": False, "gated": False, "downloads": 0, "likes": 0}
    modified = moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")
    return Response.json({"id": repo_id, "sha": commit, "lastModified": modified, **fields})


@route("GET", "/api/{kind}/{repo}/refs")
def refs(call: Call) -> Response:
    def listing(kind: str) -> list[dict]:
        found = call.repository.refs(kind).items()
        return [
            {"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": commit} for name, commit in found
        ]

    pulls = {"pullRequests": []} if call.flag("include_prs") else {}
    return Response.json({"branches": listing("heads"), "tags": listing("tags"), "converts": [], **pulls})


@route("POST", "/api/{kind}/{repo}/branch/{name}")
def create_branch(call: Call) -> Response:
    start = call.json().get("startingPoint") or "main"
    call.repository.create_ref("heads", call.arguments["name"], start)
    return Response.json({}, 201)


@route("POST", "/api/{kind}/{repo}/tag/{revision}")
def create_tag(call: Call) -> Response:
    tag = call.json().get("tag")
    if not tag:
        raise bad_request("A tag needs a name")
    call.repository.create_ref("tags", tag, call.commit)
    return Response.json({}, 201)


@route("DELETE", "/api/{kind}/{repo}/branch/{name}")
def delete_branch(call: Call) -> Response:
    call.repository.delete_ref("heads", call.arguments["name"])
    return Response.json({})


@route("DELETE", "/api/{kind}/{repo}/tag/{name}")
def delete_tag(call: Call) -> Response:
    call.repository.delete_ref("tags", call.arguments["name"])
    return Response.json({})


@route("GET", "/api/{kind}/{repo}/commits/{revision}")
def commits(call: Call) -> Response:
    def describe(oid: str, title: str, time: int) -> dict:
        date = datetime.fromtimestamp(time, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        subject, _, message = title.partition("\n\n")
        return {
            "id": oid,
            "title": subject,
            "message": message,
            "date": date,
            "authors": [{"user": _USER}],
        }

    history = call.repository.history(call.commit)
    return Response.json([describe(oid, commit.message, commit.time) for oid, commit in history])


# Content


@route("GET", "/api/{kind}/{repo}/tree/{revision}(?:/{path})?")
def tree(call: Call) -> Response:
    commit, size = call.commit, call.hub.page_size
    start = int(call.query.get("cursor", ["0"])[0])
    entries = call.repository.walk(commit, call.arguments.get("path", "").strip("/"), call.flag("recursive"))
    page = list(islice(entries, start, start + size + 1))
    headers = {"X-Repo-Commit": commit}
    if len(page) > size:
        query = {"recursive": str(call.flag("recursive")).lower(), "cursor": start + size}
        headers["Link"] = f'<{call.hub.url}{call.path}?{urlencode(query)}>; rel="next"'
    return Response.json([entry.as_json() for entry in page[:size]], headers=headers)


@route("POST", "/api/{kind}/{repo}/paths-info/{revision}")
def paths_info(call: Call) -> Response:
    found = []
    for path in parse_qs(call.body.decode()).get("paths", []):
        try:
            found.append(call.repository.info(call.commit, path.strip("/")).as_json())
        except HubError as error:
            if error.headers.get("X-Error-Code") != "EntryNotFound":
                raise
    return Response.json(found)


@route("GET", "(?:/{kind})?/{repo}/resolve/{revision}/{path}")
def resolve(call: Call) -> Response:
    commit = call.commit
    info, content = call.repository.read(commit, call.arguments["path"])
    name = quote(info.path.rsplit("/", 1)[-1])
    headers = {
        "ETag": f'"{info.oid}"',
        "X-Repo-Commit": commit,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
        "Content-Disposition": f"inline; filename*=UTF-8''{name}; filename=\"{name}\";",
    }
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", call.headers.get("range", ""))
    if not wanted:
        return Response(content, 200, headers)
    first, last = int(wanted[1]), min(int(wanted[2] or info.size - 1), info.size - 1)
    if first > last:
        return Response(b"", 416, {**headers, "Content-Range": f"bytes */{info.size}"})
    return Response(
        content[first : last + 1], 206, {**headers, "Content-Range": f"bytes {first}-{last}/{info.size}"}
    )


# Publishing


@route("POST", "/api/{kind}/{repo}/preupload/{revision}")
def preupload(call: Call) -> Response:
    """Say how to send each file: always inside the commit, so that no second storage is needed."""
    commit, known = call.commit, []
    for file in call.json().get("files", []):
        try:
            oid = {"oid": call.repository.info(commit, file["path"]).oid}
        except HubError:
            oid = {}
        known.append({"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, **oid})
    return Response.json({"files": known})


@route("POST", "/api/{kind}/{repo}/commit/{revision}")
def commit(call: Call) -> Response:
    repository, branch = call.repository, call.arguments["revision"].removeprefix("refs/heads/")
    if call.flag("create_pr"):
        raise conflict("This Hub has no pull requests: commit to a branch")
    request = CommitRequest.parse(call.body)
    oid = repository.commit(
        branch, request.message, lambda root: request.apply(root, repository.objects), request.parent
    )
    url = f"{call.hub.url}{_page(call.arguments['repo'], call.arguments['kind'])}/commit/{oid}"
    return Response.json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})
