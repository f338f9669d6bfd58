"""Weights on a node: mapped where the server's folder is shared, else fetched once, and never removed under a user."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.agent.far_end import FarEnd
from trainer.agent.blobs import CACHED_BLOBS, BlobProblem, BlobStore
from trainer.agent.server import Server, ServerRefusal
from trainer.message import BlobRef

STOP = threading.Event()


@pytest.fixture
def make_store(far_end: FarEnd, tmp_path: Path) -> Iterator[Callable[..., BlobStore]]:
    """Make a node's store with an empty cache."""
    far_end.nodes["tms_blobs"] = "node-1"
    cache = tmp_path / "cache"
    cache.mkdir()
    server = Server(far_end.url, "tms_blobs")
    yield lambda *shared: BlobStore(server, cache, "0001", shared)
    server.http.close()


def shared_blob(folder: Path, data: bytes) -> BlobRef:
    """A blob as it lies in the server's folder."""
    digest = hashlib.sha256(data).hexdigest()
    path = folder / digest[:2] / digest[2:4] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return BlobRef(digest=digest, size_bytes=len(data), path=str(path))


def test_a_blob_in_a_shared_folder_is_the_servers_own_file(make_store, far_end: FarEnd, tmp_path: Path) -> None:
    ref = shared_blob(tmp_path / "blobs", b"weights")
    with make_store(tmp_path / "blobs").borrow(ref, STOP) as path:
        assert path == Path(ref.path)
    assert far_end.requests == []
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_path_outside_the_shared_folders_is_never_opened(make_store, far_end: FarEnd, tmp_path: Path) -> None:
    """The server may name any path; the owner's word decides. The bytes then come over HTTP."""
    ref = shared_blob(tmp_path / "elsewhere", b"weights")
    far_end.blobs[ref.digest] = b"weights"
    (tmp_path / "blobs").mkdir()
    link = tmp_path / "blobs" / ref.digest
    link.symlink_to(ref.path)
    climbing = f"{tmp_path}/blobs/../elsewhere/{ref.digest[:2]}/{ref.digest[2:4]}/{ref.digest}"
    for path in (ref.path, str(link), climbing):
        with make_store(tmp_path / "blobs").borrow(ref.model_copy(update={"path": path}), STOP) as found:
            assert found == tmp_path / "cache" / ref.digest
    assert [method for method, _, _ in far_end.requests] == ["GET"]


@pytest.mark.parametrize("fault", ["another name", "another size", "gone"])
def test_a_shared_file_that_is_not_the_blob_is_fetched(make_store, far_end: FarEnd, tmp_path: Path, fault: str) -> None:
    ref = shared_blob(tmp_path / "blobs", b"weights")
    far_end.blobs[ref.digest] = b"weights"
    path = Path(ref.path)
    if fault == "another name":
        ref = ref.model_copy(update={"path": str(path.rename(path.with_name("0" * 64)))})
    elif fault == "another size":
        path.write_bytes(b"weight")
    else:
        path.unlink()
    with make_store(tmp_path / "blobs").borrow(ref, STOP) as found:
        assert found.parent == tmp_path / "cache"
        assert found.read_bytes() == b"weights"


def test_a_borrowed_blob_stays_and_of_the_others_the_newest_few(make_store, far_end: FarEnd, tmp_path: Path) -> None:
    """A runner loads its data for a minute before it looks at the weights, while other jobs' rounds come and go."""
    store = make_store()
    first = far_end.add_blob(b"first")
    with store.borrow(first, STOP) as path:
        for number in range(2 * CACHED_BLOBS):
            with store.borrow(far_end.add_blob(b"%d" % number), STOP):
                pass
        assert path.read_bytes() == b"first"
        assert len(list((tmp_path / "cache").iterdir())) == CACHED_BLOBS + 1
    assert len(list((tmp_path / "cache").iterdir())) == CACHED_BLOBS
    assert len(store._fetching) <= CACHED_BLOBS + 1


def test_many_threads_fetch_a_blob_once(make_store, far_end: FarEnd) -> None:
    store = make_store()
    refs = [far_end.add_blob(b"%d" % number * 1000) for number in range(8)]
    wrong: list[object] = []

    def use() -> None:
        for ref in refs * 3:
            with store.borrow(ref, STOP) as path:
                if hashlib.sha256(path.read_bytes()).hexdigest() != ref.digest:
                    wrong.append(ref)

    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_wrong_bytes_are_a_problem_and_leave_nothing(make_store, far_end: FarEnd, tmp_path: Path) -> None:
    ref = far_end.add_blob(b"weights")
    far_end.blobs[ref.digest] = b"weighty"
    with pytest.raises(BlobProblem, match="not what the server announced"), make_store().borrow(ref, STOP):
        pass
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_blob_that_the_node_does_not_need_is_refused_with_the_servers_sentence(make_store) -> None:
    ref = BlobRef(digest="0" * 64, size_bytes=1)
    with pytest.raises(ServerRefusal, match="does not need this blob"), make_store().borrow(ref, STOP):
        pass


def test_what_is_fetched_and_sent_is_counted(make_store, far_end: FarEnd, tmp_path: Path) -> None:
    """Every byte once, also over a connection that broke; nothing where the file was there already, or is mapped."""
    store = make_store(tmp_path / "blobs")
    ref = far_end.add_blob(b"x" * 5000)
    far_end.break_get_after = 1000
    counted: list[int] = []
    for _ in range(2):
        with store.borrow(ref, STOP, counted.append):
            assert sum(counted) == 5000
    with store.borrow(shared_blob(tmp_path / "blobs", b"weights"), STOP, counted.append):
        assert sum(counted) == 5000

    update = tmp_path / "update"
    update.write_bytes(b"y" * 3000)
    sent: list[int] = []
    store.deliver(update, STOP, sent.append)
    assert sum(sent) == 3000


def test_an_update_is_handed_over_where_the_servers_folder_is_shared(
    make_store, far_end: FarEnd, tmp_path: Path
) -> None:
    """The far end takes it as the server does; the bytes never cross the wire, and nothing stays behind."""
    shared = tmp_path / "blobs"
    far_end.shared = shared
    update = tmp_path / "update"
    update.write_bytes(b"changed")
    digest = make_store(shared).deliver(update, STOP)
    assert far_end.blobs[digest] == b"changed"
    assert [method for method, _, _ in far_end.requests] == ["POST"]
    assert list((shared / "incoming" / "0001").iterdir()) == []
    assert update.exists()


def test_a_server_that_is_busy_for_a_moment_is_told_again(make_store, far_end: FarEnd, tmp_path: Path) -> None:
    far_end.shared = tmp_path / "blobs"
    far_end.busy_posts = 1
    update = tmp_path / "update"
    update.write_bytes(b"changed")
    digest = make_store(far_end.shared).deliver(update, STOP)
    assert far_end.blobs[digest] == b"changed"
    assert [method for method, _, _ in far_end.requests] == ["POST", "POST"]


def test_an_update_is_sent_where_the_server_sees_no_such_folder(make_store, far_end: FarEnd, tmp_path: Path) -> None:
    """Two machines may have folders of the same name."""
    update = tmp_path / "update"
    update.write_bytes(b"changed")
    digest = make_store(tmp_path / "blobs").deliver(update, STOP)
    assert far_end.blobs[digest] == b"changed"
    assert [method for method, _, _ in far_end.requests] == ["POST", "PUT"]
    assert list((tmp_path / "blobs" / "incoming" / "0001").iterdir()) == []
