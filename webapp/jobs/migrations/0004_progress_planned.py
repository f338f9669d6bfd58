"""What a job was to have, beside what it has come to: an early end no longer looks like a whole job."""

from __future__ import annotations

from django.db import migrations, models
from django.db.models import F


def as_total(apps, schema_editor):
    """Of a job that stopped early before now, the plan is in its history alone."""
    apps.get_model("jobs", "Job").objects.update(progress_planned=F("progress_total"))


class Migration(migrations.Migration):
    dependencies = [("jobs", "0003_masks_buffers_simulations")]

    operations = [
        migrations.AddField(model_name="job", name="progress_planned", field=models.PositiveIntegerField(default=0)),
        migrations.RunPython(as_total, migrations.RunPython.noop),
    ]
