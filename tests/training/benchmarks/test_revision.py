"""Where the revision of downloaded files is found."""

import subprocess

from jrm_training.benchmarks.revision import revision

A, B = "a" * 40, "b" * 40


def file(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("x")
    return path


def test_the_hub_cache_has_it_in_the_path(tmp_path):
    blob = file(tmp_path / "blobs" / "1234")
    link = tmp_path / "snapshots" / A / "data" / "train.parquet"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob)
    assert revision([link]) == A


def test_a_download_has_it_beside_the_files(tmp_path):
    data = file(tmp_path / "data" / "train.parquet")
    beside = file(tmp_path / ".cache" / "huggingface" / "download" / "data" / "train.parquet.metadata")
    beside.write_text(f"{A}\n{B}\n1712656091.123\n")
    assert revision([data]) == A


def test_a_checkout_has_it_in_head(tmp_path):
    data = file(tmp_path / "data" / "train.jsonl")

    def git(*arguments):
        author = ["-c", "user.name=x", "-c", "user.email=x@localhost"]
        done = subprocess.run(["git", "-C", tmp_path, *author, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    git("init")
    git("add", ".")
    git("commit", "-m", "data")
    commit = git("rev-parse", "HEAD")
    assert revision([data]) == commit
    git("pack-refs", "--all")
    assert revision([data]) == commit
    git("checkout", "--detach")
    assert revision([data]) == commit


def test_files_of_several_revisions(tmp_path):
    files = [file(tmp_path / "snapshots" / commit / "x.parquet") for commit in (B, A)]
    assert revision(files) == f"{A}, {B}"


def test_nothing_tells_it(tmp_path):
    assert revision([file(tmp_path / "x.parquet")]) == "unknown"
    beside = file(tmp_path / ".cache" / "huggingface" / "download" / "x.parquet.metadata")
    beside.write_text("no commit\n")
    assert revision([tmp_path / "x.parquet"]) == "unknown"
