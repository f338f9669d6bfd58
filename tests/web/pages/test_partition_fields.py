"""A partition's own fields in the *New job* form."""

from __future__ import annotations

from tests.conftest import browser_of
from tests.web.pages.test_new_job import URL, error_at, typed
from trainer.sections.data import ColumnPartition, QuantityPartition
from webapp.jobs.models import Job


def test_a_column_is_typed_by_its_name(owner, team):
    values = typed("diabetes-regression") | {
        "data.partition.scheme": "column",
        "data.partition:column.column": "sex",
    }
    browser_of(owner).post(URL, values)
    assert Job.objects.get().spec.data.partition == ColumnPartition(scheme="column", column="sex")


def test_a_column_that_is_not_there_is_said_at_its_field(owner, team):
    values = typed("diabetes-regression") | {"data.partition.scheme": "column"}
    page = browser_of(owner).post(URL, values | {"data.partition:column.column": "site"}).content.decode()
    assert "no column &#x27;site&#x27;: choose one of age, sex, bmi" in error_at(page, "data.partition:column.column")
    page = browser_of(owner).post(URL, values).content.decode()
    assert error_at(page, "data.partition:column.column") == "Missing."
    assert not Job.objects.exists()


def test_sizes_follow_their_alpha(owner, team):
    values = typed() | {"data.partition.scheme": "quantity", "data.partition:quantity.alpha": "0.1"}
    browser_of(owner).post(URL, values)
    assert Job.objects.get().spec.data.partition == QuantityPartition(scheme="quantity", alpha=0.1)
