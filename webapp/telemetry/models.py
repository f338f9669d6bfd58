"""Curves and logs. Points are kept as packed arrays, never as a row a point."""

from django.db import models
from django.utils import timezone


class Feed(models.Model):
    """The stream of one job's frames: `seq` counts its commits, and so numbers what the browsers get."""

    job = models.OneToOneField("jobs.Job", on_delete=models.CASCADE, primary_key=True, related_name="feed")
    seq = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return f"feed of job {self.pk} at {self.seq}"


class Series(models.Model):
    """One curve: (attempt, metric name, who reported it)."""

    attempt = models.ForeignKey("jobs.Attempt", on_delete=models.CASCADE, related_name="series")
    name = models.CharField(max_length=100)
    source = models.CharField(max_length=100)
    """A node's name, `rank 3`, or `aggregate`."""
    count = models.PositiveBigIntegerField(default=0)
    last_step = models.PositiveBigIntegerField(null=True)
    last_value = models.FloatField(null=True)
    """None for NaN and infinities: not every database keeps them in a column. The chunks do."""

    class Meta:
        ordering = ["name", "source"]
        constraints = [models.UniqueConstraint(fields=["attempt", "name", "source"], name="series_once")]

    def __str__(self) -> str:
        return f"{self.name} of {self.source}"


class Chunk(models.Model):
    """A run of points of one series, in the byte layout of `protocol.Points`."""

    series = models.ForeignKey(Series, on_delete=models.CASCADE, related_name="chunks")
    seq = models.PositiveBigIntegerField()
    """The feed's number of the commit that brought it; after compaction, of the newest one in it."""
    base_time_ms = models.BigIntegerField()
    first_step = models.PositiveBigIntegerField()
    last_step = models.PositiveBigIntegerField()
    count = models.PositiveIntegerField()
    steps = models.BinaryField()
    """uint32, little-endian."""
    times = models.BinaryField()
    """uint32 milliseconds after base_time_ms, little-endian."""
    values = models.BinaryField()
    """float64, little-endian."""

    class Meta:
        ordering = ["id"]

    def __str__(self) -> str:
        return f"{self.count} points of series {self.series_id}"


class LogLine(models.Model):
    attempt = models.ForeignKey("jobs.Attempt", on_delete=models.CASCADE, related_name="log_lines")
    source = models.CharField(max_length=100)
    at = models.DateTimeField(default=timezone.now)
    level = models.CharField(max_length=8)
    text = models.TextField()

    class Meta:
        ordering = ["id"]
        indexes = [models.Index(fields=["attempt", "id"])]

    def __str__(self) -> str:
        return self.text[:80]


class StreamCursor(models.Model):
    """The last stream entry of a node whose effects are committed. What is read again below it is skipped."""

    node = models.OneToOneField("fleet.Node", on_delete=models.CASCADE, primary_key=True, related_name="cursor")
    last_id = models.CharField(max_length=64, default="0-0")

    def __str__(self) -> str:
        return f"{self.node_id} at {self.last_id}"
