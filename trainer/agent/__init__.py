"""The node agent: takes tasks from the node's own queue, supervises runners, and reports. It trains nothing itself.

__main__.py     start: lock the home, join if needed, wait for approval, run until a signal comes
home.py         what lies in the node's home: identity, epoch, work files; one agent at a time
config.py       node.toml, the data owner's word
facts.py        what this machine is, and how busy
join.py         enrolment, and the wait for approval
server.py       the HTTP interface of the server: enrolment, updates, rendezvous
blobs.py        weights in, updates out: verified, cached, resumable
broker.py       the Redis client and the Celery worker inside the node's own corner of the broker
outbox.py       the node's telemetry stream, in order and exactly once
heart.py        heartbeats
tasks.py        the four Celery tasks, and the worker that takes them
node.py         what all attempts share
supervisor.py   which attempts run here; the slots; stopping
federated.py    one attempt of a federated job: one runner, kept from round to round
distributed.py  one attempt of a distributed job: this node's ranks under torch elastic
elastic.py      the torch elastic agent whose workers are runners
runner.py       one runner, seen from the agent: its pipe, its output, its end
child.py        one runner, seen from inside
work.py         what both say to each other
forge.py        the warm forkserver that runners are forked from
console.py      a runner's output cut into log lines
sweep.py        processes left behind by an agent that was killed
"""
