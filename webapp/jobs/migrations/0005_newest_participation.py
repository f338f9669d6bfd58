"""A client's newest round is one step into an index: FedBuff asks for it at every look, after however many rounds."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("jobs", "0004_progress_planned")]

    operations = [
        migrations.RemoveConstraint(model_name="participation", name="asked_once_a_round"),
        migrations.AddConstraint(
            model_name="participation",
            constraint=models.UniqueConstraint(fields=("assignment", "round"), name="asked_once_a_round"),
        ),
    ]
