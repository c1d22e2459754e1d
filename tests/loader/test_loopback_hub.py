"""The loopback Hub, through the clients it is for."""

from __future__ import annotations

import subprocess
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.errors import (
    BadRequestError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.loader.home import Home
from tests.loader.publishing import FOREIGN, REPOSITORY, VARIANT, TinyKernel, client, publish, publish_files
from tests.loopback_hub import LoopbackHub

KERNEL = {"repo_type": "kernel"}


def git(hub: LoopbackHub, *arguments: str) -> str:
    folder = hub.root / "kernels" / f"{REPOSITORY}.git"
    result = subprocess.run(
        ["git", "--git-dir", folder, *arguments], capture_output=True, text=True, check=True
    )
    return result.stdout.strip()


def test_commits_are_gits_own(hub: LoopbackHub) -> None:
    commit = publish(hub, {VARIANT: TinyKernel()})
    assert git(hub, "rev-parse", "v1") == commit
    assert git(hub, "fsck", "--full", "--strict") == ""
    assert git(hub, "show", f"{commit}:build/{VARIANT}/layers.py") == ""
    assert git(hub, "log", "--format=%s", commit) == "Add a build\ninitial commit"


def test_upload_folder_and_download_return_the_bytes(hub: LoopbackHub, tmp_path: Path) -> None:
    kernel, api = TinyKernel(), client(hub)
    kernel.write(tmp_path / "build" / VARIANT)
    api.create_repo(REPOSITORY, **KERNEL)
    api.create_branch(REPOSITORY, branch="v1", **KERNEL)
    commit = api.upload_folder(repo_id=REPOSITORY, folder_path=tmp_path, revision="v1", **KERNEL)
    snapshot = api.snapshot_download(REPOSITORY, revision=commit.oid, cache_dir=tmp_path / "hf", **KERNEL)
    for name, data in kernel.files().items():
        assert (Path(snapshot) / "build" / VARIANT / name).read_bytes() == data


def test_data_outlives_the_server(tmp_path: Path) -> None:
    with LoopbackHub(tmp_path) as hub:
        commit = publish(hub, {VARIANT: TinyKernel()})
    with LoopbackHub(tmp_path) as hub:
        assert client(hub).kernel_info(REPOSITORY, revision="v1").sha == commit
        refs = client(hub).list_repo_refs(REPOSITORY, **KERNEL)
        assert {ref.name: ref.target_commit for ref in refs.branches}["v1"] == commit


def test_stale_parent_is_refused(hub: LoopbackHub) -> None:
    first, api = publish(hub, {VARIANT: TinyKernel()}), client(hub)
    publish(hub, {VARIANT: TinyKernel(text="second")})
    with pytest.raises(HfHubHTTPError) as caught:
        api.create_commit(
            REPOSITORY,
            [CommitOperationAdd("a", b"a")],
            commit_message="late",
            revision="v1",
            parent_commit=first,
            **KERNEL,
        )
    assert caught.value.response.status_code == 412
    assert "A commit has happened since" in str(caught.value)


def test_concurrent_commits_all_land(hub: LoopbackHub) -> None:
    publish(hub, {VARIANT: TinyKernel()})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: publish_files(hub, {f"file{index}": b"%d" % index}), range(16)))
    assert git(hub, "rev-list", "--count", "v1") == "18"
    assert len(git(hub, "ls-tree", "--name-only", "v1").split()) == 18  # 16, build and .gitattributes


def test_unchanged_content_makes_no_commit(hub: LoopbackHub) -> None:
    kernel = TinyKernel()
    assert publish(hub, {VARIANT: kernel}) == publish(hub, {VARIANT: kernel})


def test_deletes_files_and_folders(hub: LoopbackHub) -> None:
    publish(hub, {VARIANT: TinyKernel(), FOREIGN: TinyKernel()})
    operations = [
        CommitOperationDelete(f"build/{FOREIGN}/"),
        CommitOperationDelete(f"build/{VARIANT}/layers.py"),
    ]
    client(hub).create_commit(
        REPOSITORY, operations, commit_message="less", revision="v1", repo_type="kernel"
    )
    paths = git(hub, "ls-tree", "-r", "--name-only", "v1").splitlines()
    assert f"build/{VARIANT}/ops.py" in paths
    assert not [path for path in paths if FOREIGN in path or path.endswith("layers.py")]


def test_listing_comes_in_pages(tmp_path: Path) -> None:
    with LoopbackHub(tmp_path, page_size=2) as hub:
        publish(hub, {VARIANT: TinyKernel(), FOREIGN: TinyKernel()})
        hub.requests.clear()
        listed = client(hub).list_repo_tree(REPOSITORY, recursive=True, revision="v1", **KERNEL)
        assert sorted(item.path for item in listed) == sorted(
            git(hub, "ls-tree", "-r", "-t", "--name-only", "v1").splitlines()
        )
        assert len(hub.requests) > 5


def test_tags_and_branches(hub: LoopbackHub) -> None:
    commit, api = publish(hub, {VARIANT: TinyKernel()}), client(hub)
    api.create_tag(REPOSITORY, tag="1.0/rc", revision="v1", **KERNEL)
    assert api.kernel_info(REPOSITORY, revision="1.0/rc").sha == commit
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(REPOSITORY, tag="1.0/rc", **KERNEL)
    api.delete_tag(REPOSITORY, tag="1.0/rc", **KERNEL)
    api.delete_branch(REPOSITORY, branch="v1", **KERNEL)
    with pytest.raises(RevisionNotFoundError):
        api.kernel_info(REPOSITORY, revision="v1")
    assert api.kernel_info(REPOSITORY, revision=commit).sha == commit
    with pytest.raises(BadRequestError, match="cannot be deleted"):
        api.delete_branch(REPOSITORY, branch="main", **KERNEL)


def test_errors_become_the_clients_exceptions(hub: LoopbackHub, tmp_path: Path) -> None:
    api = client(hub)
    with pytest.raises(RepositoryNotFoundError):
        api.kernel_info(REPOSITORY)
    commit = publish(hub, {VARIANT: TinyKernel()})
    with pytest.raises(RevisionNotFoundError):
        api.kernel_info(REPOSITORY, revision="v9")
    with pytest.raises(RevisionNotFoundError):
        api.kernel_info(REPOSITORY, revision="0" * 40)
    with pytest.raises(RemoteEntryNotFoundError):
        api.hf_hub_download(REPOSITORY, "nope", revision=commit, cache_dir=tmp_path / "hf", **KERNEL)
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPOSITORY, **KERNEL)
    with pytest.raises(BadRequestError, match="'kernel' and 'model'"):
        api.create_repo(REPOSITORY, repo_type="dataset")


def test_a_model_and_a_kernel_may_have_one_name(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = publish(hub, {VARIANT: TinyKernel()})
    api = client(hub)
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(REPOSITORY)
    assert str(api.create_repo(REPOSITORY)) == f"{hub.url}/{REPOSITORY}"
    (tmp_path / "config.json").write_text("{}")
    api.upload_folder(repo_id=REPOSITORY, folder_path=tmp_path, allow_patterns="*.json")
    assert api.list_repo_files(REPOSITORY) == [".gitattributes", "config.json"]
    path = api.hf_hub_download(REPOSITORY, "config.json", cache_dir=tmp_path / "hf")
    assert Path(path).read_text() == "{}"
    assert git(hub, "rev-parse", "v1") == commit


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "a//b", ".git/config", "a/./b"])
def test_paths_cannot_leave_the_repository(hub: LoopbackHub, path: str) -> None:
    publish(hub, {VARIANT: TinyKernel()})
    header = b'{"key": "header", "value": {"summary": "s"}}\n'
    line = (
        b'{"key": "file", "value": {"path": "%s", "content": "eA==", "encoding": "base64"}}' % path.encode()
    )
    request = urllib.request.Request(f"{hub.url}/api/kernels/{REPOSITORY}/commit/v1", header + line)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert git(hub, "rev-list", "--count", "v1") == "2"


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"key": "file", "value": {}}'])
def test_bad_commits_change_nothing(hub: LoopbackHub, body: bytes) -> None:
    commit = publish(hub, {VARIANT: TinyKernel()})
    request = urllib.request.Request(f"{hub.url}/api/kernels/{REPOSITORY}/commit/v1", body, method="POST")
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    assert caught.value.code == 400
    assert git(hub, "rev-parse", "v1") == commit


def test_ranges(hub: LoopbackHub) -> None:
    commit = publish_files(hub, {"data": b"0123456789"})
    url = f"{hub.url}/kernels/{REPOSITORY}/resolve/{commit}/data"
    for wanted, status, body in (("bytes=4-", 206, b"456789"), ("bytes=2-3", 206, b"23")):
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": wanted})) as response:
            assert (response.status, response.read()) == (status, body)
    with pytest.raises(urllib.error.HTTPError, match="416"):
        urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=10-"}))


def test_broken_transfer_is_resumed(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    data = bytes(range(256)) * 4096
    commit = publish_files(hub, {"data": data})
    hub.faults.truncate("/data", keep=400_000)
    path = client(hub).hf_hub_download(
        REPOSITORY, "data", revision=commit, cache_dir=tmp_path / "hf", **KERNEL
    )
    assert Path(path).read_bytes() == data
    assert [request.status for request in hub.requests if request.headers.get("range")] == [206]


def test_stopped_hub_answers_no_more(tmp_path: Path) -> None:
    hub = LoopbackHub(tmp_path).start()
    publish(hub, {VARIANT: TinyKernel()})
    hub.stop()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"{hub.url}/api/kernels/{REPOSITORY}", timeout=5)
    assert not [thread for thread in threading.enumerate() if thread is hub._thread]


def test_kernels_client_lists_versions_and_variants(hub: LoopbackHub, home: Home) -> None:
    from kernels import VariantAccepted, get_kernel_variants, has_kernel

    publish(hub, {VARIANT: TinyKernel(), FOREIGN: TinyKernel()})
    home.connect(hub.url)
    decisions = get_kernel_variants(REPOSITORY, version=1)
    assert [type(decision) is VariantAccepted for decision in decisions] == [True, False]
    assert has_kernel(REPOSITORY, version=1, trust_remote_code=[REPOSITORY])
    with pytest.raises(ValueError, match="available versions: 1"):
        get_kernel_variants(REPOSITORY, version=2)


def test_kernels_client_asks_for_the_publisher(tmp_path: Path, home: Home) -> None:
    from kernels import has_kernel

    with LoopbackHub(tmp_path / "hub", trusted=("flash-rwkv",)) as hub:
        for repository in (REPOSITORY, "stranger/kernel"):
            publish(hub, {VARIANT: TinyKernel()}, repository=repository)
        home.connect(hub.url)
        assert has_kernel(REPOSITORY, version=1)
        with pytest.raises(ValueError, match="not from a trusted publisher"):
            has_kernel("stranger/kernel", version=1)
        with pytest.raises(ValueError, match="could not verify"):
            has_kernel("nobody/kernel", version=1)


def test_command_line_serves(home: Home, tmp_path: Path) -> None:
    process = home.start(
        "-m", "tests.loopback_hub", "--root", str(tmp_path / "with space"), "--trust", "someone"
    )
    try:
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}/api/organizations/someone/overview") as response:
            assert b'"trustedKernelPublisher": true' in response.read()
        second = home.run(
            "-m", "tests.loopback_hub", "--root", str(tmp_path), "--port", url.rsplit(":", 1)[1]
        )
        assert second.returncode == 1
        assert "cannot serve" in second.stderr
    finally:
        process.terminate()
        process.communicate(timeout=10)
    assert process.returncode == 0
