"""A batch of entries becomes rows: all of it in one transaction with the cursors, so that each entry counts once."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from uuid import UUID

from django.db import transaction
from django.db.utils import InterfaceError, OperationalError

from trainer.protocol import Heartbeat, Logs, Points, RunReport
from webapp.fleet.services import record_heartbeat
from webapp.ingest.entries import BadEntry, Entry, RawEntry, order_of, parse_entry
from webapp.ingest.limits import LineBudget
from webapp.ingest.streams import lock_cursors
from webapp.ingest.voices import sources_of
from webapp.jobs.door import count_stray
from webapp.jobs.models import Assignment, Stray
from webapp.jobs.services import record_report
from webapp.telemetry.models import StreamCursor
from webapp.telemetry.series import SeriesCache
from webapp.telemetry.services import record_logs, record_points

logger = logging.getLogger(__name__)


class EntryStore:
    """Stores batches, and counts what it had to refuse."""

    def __init__(self) -> None:
        self.num_entries = 0
        self.num_points = 0
        self.bad_entries: Counter[tuple[UUID, str]] = Counter()
        """Refused entries by node and fault."""
        self._budget = LineBudget()
        self._cache = SeriesCache()
        self._known_voices: dict[tuple[UUID, int], frozenset[str]] = {}
        self._is_committed = False

    def parse(self, raws: Sequence[RawEntry]) -> list[Entry]:
        """Check entries at the door. A bad one is counted, and stays in the batch as an id to step over."""
        entries = []
        for raw in raws:
            try:
                entry = parse_entry(raw)
            except BadEntry as bad:
                entry = self._refuse(raw, bad)
            if isinstance(entry.message, Logs):
                entry = Entry(entry.node_id, entry.id, self._budget.take(entry.message))
            entries.append(entry)
        return entries

    def store(self, entries: Sequence[Entry]) -> None:
        """Commit the entries' effects and the cursors behind them.

        Raises OperationalError or InterfaceError where the database is locked or away: nothing is stored then, and the
        caller tries again. Any other error is one entry's fault: it is found by storing them one by one, and refused.
        """
        try:
            self._commit(entries)
        except (OperationalError, InterfaceError):
            self._cache = SeriesCache()  # it mirrors what was rolled back
            raise
        except Exception as problem:
            if self._is_committed:
                # All is stored; only a message sent after the commit failed, and the sweeps make up for those.
                logger.exception("A message that follows stored entries could not be sent.")
                return
            self._cache = SeriesCache()
            if len(entries) > 1:
                for entry in entries:
                    self.store([entry])
                return
            logger.exception("Entry %s of node %s broke the store.", entries[0].id, entries[0].node_id)
            self._commit([self._refuse(entries[0], BadEntry("it cannot be stored", type(problem).__name__))])

    def _commit(self, entries: Sequence[Entry]) -> None:
        self._is_committed = False
        with transaction.atomic():
            transaction.on_commit(self._note_commit)
            # Step 1: what another ingest, or this one before a crash, has committed already is skipped.
            cursors = lock_cursors({entry.node_id for entry in entries})
            done = {node_id: order_of(cursor.last_id) for node_id, cursor in cursors.items()}
            fresh = [entry for entry in entries if order_of(entry.id) > done[entry.node_id]]
            if not fresh:
                return
            # Step 2: a node writes curves and logs only of attempts that it was given, as itself. What is refused is counted.
            voices = self._voices(fresh)
            fresh = [self._check_voice(entry, voices) for entry in fresh]
            self._count_refused(fresh)
            # Step 3: signs of life first, then reports: they take locks in the order in which the conductor does.
            heartbeats = {e.node_id: e.message for e in fresh if isinstance(e.message, Heartbeat)}  # the newest wins
            for node_id in sorted(heartbeats):
                record_heartbeat(node_id=node_id, heartbeat=heartbeats[node_id])
            for entry in fresh:
                if isinstance(entry.message, RunReport):
                    record_report(node_id=str(entry.node_id), report=entry.message)
            # Step 4: curves and logs.
            points = [(e.message, e.data) for e in fresh if isinstance(e.message, Points)]
            logs = [e.message for e in fresh if isinstance(e.message, Logs)]
            if points:
                record_points(entries=points, cache=self._cache)
            if logs:
                record_logs(entries=logs, cache=self._cache)
            # Step 5: the cursors, in the same commit.
            for entry in fresh:
                cursors[entry.node_id].last_id = entry.id
            # An upsert, for `bulk_update` builds a CASE for each row, which takes three times as long.
            StreamCursor.objects.bulk_create(
                cursors.values(), update_conflicts=True, unique_fields=["node"], update_fields=["last_id"]
            )
        self._known_voices = voices if len(voices) < 100_000 else {}
        self.num_entries += len(fresh)
        self.num_points += sum(head.count for message, _ in points for head in message.series)

    def _note_commit(self) -> None:
        self._is_committed = True

    def _voices(self, entries: Sequence[Entry]) -> dict[tuple[UUID, int], frozenset[str]]:
        """Return the known (node, attempt) pairs, with those of `entries`, and the sources that each may report as.

        At most one query, and none as a rule.
        """
        asked = {(e.node_id, e.message.attempt_id) for e in entries if isinstance(e.message, Points | Logs)}
        if not (missing := asked - self._known_voices.keys()):
            return self._known_voices
        rows = Assignment.objects.filter(
            node_id__in={node_id for node_id, _ in missing}, attempt_id__in={attempt_id for _, attempt_id in missing}
        )
        found = rows.order_by().values_list(
            "node_id",
            "attempt_id",
            "node__name",
            "index",
            "slots",
            "attempt__job__mode",
            "attempt__job__spec_json__federated__clients__simulate",
        )
        return self._known_voices | {
            (node_id, attempt_id): sources_of(*assignment) for node_id, attempt_id, *assignment in found
        }

    def _check_voice(self, entry: Entry, voices: dict[tuple[UUID, int], frozenset[str]]) -> Entry:
        """Refuse an entry that speaks for another's attempt, or as another: a node forges nobody's curve."""
        message = entry.message
        if not isinstance(message, Points | Logs):
            return entry
        own = voices.get((entry.node_id, message.attempt_id))
        if own is None:
            bad = BadEntry("it speaks for an attempt that the node was not given", f"attempt {message.attempt_id}")
            return self._refuse(entry, bad)
        spoken = {message.source} if isinstance(message, Logs) else {head.source for head in message.series}
        if foreign := spoken - own:
            return self._refuse(entry, BadEntry("it reports as somebody else", f"as '{min(foreign)[:60]}'"))
        return entry

    def _refuse(self, entry: RawEntry | Entry, bad: BadEntry) -> Entry:
        """Count a bad entry; say so the first time. Returns what steps over it."""
        key = (entry.node_id, bad.fault)
        if key not in self.bad_entries:
            logger.warning(
                "Entry %s of node %s was left out, because %s%s. More of its kind are counted, not logged.",
                entry.id,
                entry.node_id,
                bad.fault,
                f" ({bad.details})" if bad.details else "",
            )
        self.bad_entries[key] += 1
        return Entry(entry.node_id, entry.id, None, fault=f"An entry of its telemetry was left out: {bad.fault}.")

    def _count_refused(self, entries: Sequence[Entry]) -> None:
        """Count refused entries where the administrator looks: one row a node."""
        refused: defaultdict[UUID, list[str]] = defaultdict(list)
        for entry in entries:
            if entry.fault:
                refused[entry.node_id].append(entry.fault)
        for node_id, faults in sorted(refused.items()):
            count_stray(node_id=str(node_id), kind=Stray.Kind.TELEMETRY, reason=faults[-1], num=len(faults))
