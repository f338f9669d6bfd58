"""Counts of labels: what the job page draws of who holds what."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.trainer.parts import builtin, spec_of
from trainer.data.files import describe_file
from trainer.data.labels import count_labels
from trainer.data.prepare import load_rows, prepare_client, prepare_rank, split_rows
from trainer.data.source import Source


def test_counts_are_of_the_clients_training_rows() -> None:
    spec = spec_of(data={"partition": {"scheme": "shards", "shards_per_client": 2}})
    source = builtin()
    counts = [count_labels(prepare_client(spec, source, client, 5), source.description) for client in range(5)]
    y = load_rows(source).y[split_rows(1797, 0.2, spec.seed)[0]]
    for label, total in enumerate(np.bincount(y)):
        assert sum(count.get(str(label), 0) for count in counts) == total
    assert all(len(count) < 10 for count in counts)  # classes that a client has not are left out
    assert all(list(count) == sorted(count) and min(count.values()) > 0 for count in counts)


def test_counts_go_by_the_classes_names(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + "".join(f"{row},{'sick' if row % 4 == 0 else 'fine'}\n" for row in range(20)))
    source = Source(description=describe_file("t", path, "y", "classification"), path=path)
    counts = count_labels(prepare_rank(spec_of("distributed", source="t"), source), source.description)
    train, _ = split_rows(20, 0.2, 0)
    sick = int((train % 4 == 0).sum())
    assert list(counts.items()) == [("fine", 16 - sick), ("sick", sick)]


def test_a_regression_has_no_labels() -> None:
    source = builtin("diabetes")
    assert count_labels(prepare_rank(spec_of("distributed", source="diabetes"), source), source.description) == {}
