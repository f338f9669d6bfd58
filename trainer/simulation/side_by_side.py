"""Clients trained side by side in one process: their weights stacked, each step taken by all at once (`torch.func.vmap`).

Every client has the draws, the batches and the steps that it has alone; only the order of sums within an operation differs, so
weights agree with those of `OneByOne` to float tolerance and not to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from trainer.federated.kept import ClientFiles
from trainer.federated.local import Local, start_local
from trainer.federated.local_round import LocalTrainer, WriteFile, write_update
from trainer.federated.result import ClientResult
from trainer.losses import Objective
from trainer.optimizers import build_optimizer
from trainer.simulation.executor import Trained
from trainer.simulation.rows import VirtualRows
from trainer.spec import JobSpec
from trainer.training import batches_of, prefixed, seeded_generator
from trainer.weights import Weights

STACK_BYTES = 1 << 29
"""Of all that the clients take which are trained at once, see `Footprint`. A client that alone takes more is trained alone."""
COPIES = 4
"""Tensors as large as the weights that a client in the stack takes at most: weights, gradient, two of Adam."""
ACTIVATION_COPIES = 6
"""Tensors as large as the layers' outputs that a step takes at most: what backward needs, gradients, and the convolutions' own.
Measured with a cnn on images of 3x224x224, batches of 10: 5.4."""


class Member(NamedTuple):
    """One client in the stack."""

    client: int
    x: Tensor
    y: Tensor
    batches: list[Tensor]
    """Positions of the rows of each step, over all epochs."""
    local: Local
    kept: Weights


class Footprint:
    """Bytes that a client takes in a stack: its share of the weights, its rows, and the widest of its steps."""

    def __init__(self, model: nn.Module, example: Tensor, batch_size: int) -> None:
        """`example` is one row as the model takes it, (1, *shape)."""
        self._weights = COPIES * sum(parameter.nbytes for parameter in model.parameters())
        self._row = example.nbytes
        self._step = example.nbytes + ACTIVATION_COPIES * _activation_bytes(model, example)
        self._batch_size = batch_size

    def of(self, num_rows: int, longest: int) -> int:
        """Return those of a client with `num_rows`, beside one with the `longest` rows, to whose batches its own are padded."""
        return self._weights + num_rows * self._row + min(longest, self._batch_size) * self._step


class SideBySide:
    """Trains the clients of a share in stacks, those with the most steps first."""

    def __init__(self, spec: JobSpec, trainer: LocalTrainer, rows: VirtualRows, write_file: WriteFile) -> None:
        assert spec.federated is not None
        self._spec = spec
        self._epochs = spec.federated.local_epochs
        self._trainer = trainer
        self._rows = rows
        self._write_file = write_file
        # The test rows have the shape of the training rows, and all clients share them.
        example = rows.test_x.new_zeros(1, *rows.test_x.shape[1:])
        self._footprint = Footprint(trainer.model, example, spec.training.batch_size)

    def train(
        self,
        round_number: int,
        weights: Weights,
        memory: Weights,
        updates: Mapping[int, Path],
        kept: Mapping[int, tuple[ClientFiles, int]],
        on_trained: Trained,
    ) -> None:
        """As `OneByOne.train`."""
        clients = sorted(updates, key=lambda client: (-self._rows.num_rows(client), client))
        for together in self._stacks(clients):
            started = time.perf_counter()
            members: list[Member] = []
            starts: list[dict[str, Tensor]] = []
            for client in together:
                files, counted_round = kept.get(client, (None, 0))
                members.append(
                    self._member(client, round_number, weights, memory, files.read(counted_round) if files else {})
                )
                starts.append({name: value.detach().clone() for name, value in self._trainer.model.named_parameters()})
            stack = Stack(self._spec, self._trainer.model, self._trainer.objective, members, starts)
            seen = stack.run()
            seconds = (time.perf_counter() - started) / len(members)
            for place, member in enumerate(members):
                files, counted_round = kept.get(member.client, (None, 0))
                stack.unload(place)
                with np.errstate(over="ignore", invalid="ignore"):  # of training that diverged
                    finished = member.local.finish(len(member.batches))
                path = updates[member.client]
                write_update(
                    self._spec,
                    member.client,
                    round_number,
                    finished,
                    path,
                    kept=member.kept,
                    files=files,
                    counted_round=counted_round,
                    write_file=self._write_file,
                )
                result = ClientResult(
                    num_examples=len(member.y),
                    num_steps=len(member.batches),
                    metrics=prefixed("train", seen[place]),
                    seconds_training=seconds,
                )
                on_trained(member.client, result)

    def _stacks(self, clients: Sequence[int]) -> Iterator[list[int]]:
        """Cut clients, which descend by their rows, into stacks of at most STACK_BYTES."""
        together: list[int] = []
        num_bytes = longest = 0
        for client in clients:
            num_rows = self._rows.num_rows(client)
            if together and num_bytes + self._footprint.of(num_rows, longest) > STACK_BYTES:
                yield together
                together, num_bytes = [], 0
            if not together:
                longest = num_rows
            together.append(client)
            num_bytes += self._footprint.of(num_rows, longest)
        if together:
            yield together

    def _member(self, client: int, round_number: int, weights: Weights, memory: Weights, kept: Weights) -> Member:
        """Draw a client's batches, as its own training would, and leave the model where the client starts."""
        data = self._rows.of(client)
        generator = seeded_generator(self._spec.seed, round_number, client)
        batches: list[Tensor] = []
        for _ in range(self._epochs):
            order = torch.randperm(len(data.train_y), generator=generator).to(data.train_y.device)
            batches += batches_of(order, self._spec.training.batch_size)
        local = start_local(self._spec, self._trainer.model, weights, memory, kept)
        return Member(client, data.train_x, data.train_y, batches, local, kept)


class Stack:
    """The weights of several clients, one above the other, and their training. Members descend by their number of steps."""

    def __init__(
        self,
        spec: JobSpec,
        model: nn.Module,
        objective: Objective,
        members: Sequence[Member],
        starts: Sequence[dict[str, Tensor]],
    ) -> None:
        """`starts` are the members' parameters before the first step."""
        assert spec.federated is not None
        self._members = members
        self._model = model
        self._objective = objective
        self._epochs = spec.federated.local_epochs
        self._options = spec.training.optimizer
        self._weights = {name: torch.stack([start[name] for start in starts]) for name in starts[0]}
        self._step = vmap(grad(self._loss, has_aux=True))

    def run(self) -> list[dict[str, float]]:
        """Train all members to the end. Returns the metrics of each one's last epoch, as its steps saw the rows."""
        num_steps = [len(member.batches) for member in self._members]
        outputs: list[list[Tensor]] = [[] for _ in self._members]
        state: dict[str, Tensor] = {}
        step = 0
        # Members with fewer steps leave at the end of the stack: what is at work is always its beginning, without a copy.
        for active, until in _stretches(num_steps):
            parts = {name: value[:active].requires_grad_() for name, value in self._weights.items()}
            optimizer = build_optimizer(self._options, parts.values())  # type: ignore[arg-type]
            self._restore(optimizer, parts, state, active)
            for number in range(step, until):
                x, y, mask = self._batch(number, active)
                gradients, seen = self._step({name: part.detach() for name, part in parts.items()}, x, y, mask)
                for name, part in parts.items():
                    part.grad = gradients[name]
                optimizer.step()
                for place in range(active):
                    if number >= num_steps[place] - num_steps[place] // self._epochs:
                        outputs[place].append(seen[place, : len(self._members[place].batches[number])])
            state = self._state_of(optimizer, parts)
            step = until
        return [
            self._objective.metrics(self._objective.totals(torch.cat(parts), self._last_targets(member)))
            for member, parts in zip(self._members, outputs, strict=True)
        ]

    def unload(self, place: int) -> None:
        """Load a member's weights into the model."""
        with torch.no_grad():
            for name, parameter in self._model.named_parameters():
                parameter.copy_(self._weights[name][place])

    def _loss(self, weights: dict[str, Tensor], x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss over the rows that the mask takes, and all outputs. x: (B, *shape), y and mask: (B,)."""
        outputs = functional_call(self._model, weights, (x,)).float()
        # Row by row, so that what pads a smaller batch counts for nothing.
        losses = vmap(self._objective.loss)(outputs.unsqueeze(1), y.unsqueeze(1))
        return (losses * mask).sum() / mask.sum(), outputs.detach()

    def _batch(self, number: int, active: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return the rows of a step, (members, B, *shape), padded to the largest batch, and which of them count."""
        batches = [member.batches[number] for member in self._members[:active]]
        size = max(len(batch) for batch in batches)
        x = torch.stack([_padded(member.x[rows], size) for member, rows in zip(self._members, batches, strict=False)])
        y = torch.stack([_padded(member.y[rows], size) for member, rows in zip(self._members, batches, strict=False)])
        counts = torch.tensor([len(batch) for batch in batches], device=x.device)
        mask = torch.arange(size, device=x.device) < counts.unsqueeze(1)
        return x, y, mask.to(x.dtype)

    def _last_targets(self, member: Member) -> Tensor:
        last = member.batches[-(len(member.batches) // self._epochs) :]
        return member.y[torch.cat(last)]

    @staticmethod
    def _state_of(optimizer: torch.optim.Optimizer, parts: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what the optimizer remembers, as `<parameter>/<kind>`."""
        return {
            f"{name}/{kind}": value
            for name, part in parts.items()
            for kind, value in optimizer.state[part].items()
            if value is not None
        }

    @staticmethod
    def _restore(
        optimizer: torch.optim.Optimizer, parts: dict[str, Tensor], state: dict[str, Tensor], active: int
    ) -> None:
        """Give a new optimizer what the last one remembered of the members that go on."""
        for path, value in state.items():
            name, _, kind = path.rpartition("/")
            optimizer.state[parts[name]][kind] = value[:active] if value.dim() else value


def _activation_bytes(model: nn.Module, example: Tensor) -> int:
    """Return how large the outputs of all layers are, for one row."""
    sizes: list[int] = []
    layers = [layer for layer in model.modules() if not any(layer.children())]
    hooks = [
        layer.register_forward_hook(lambda _layer, _given, output: sizes.append(output.nbytes)) for layer in layers
    ]
    was_training = model.training
    model.eval()  # draws nothing
    try:
        with torch.no_grad():
            model(example)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return sum(sizes)


def _stretches(num_steps: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield (members at work, step until which they all are) for counts of steps that descend."""
    for active in range(len(num_steps), 0, -1):
        if active == len(num_steps) or num_steps[active - 1] > num_steps[active]:
            yield active, num_steps[active - 1]


def _padded(values: Tensor, size: int) -> Tensor:
    """Return (n, ...) as (size, ...), with zeros behind."""
    if len(values) == size:
        return values
    return torch.cat([values, values.new_zeros(size - len(values), *values.shape[1:])])
