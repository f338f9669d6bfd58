"""What an agent hands to the ranks of a simulation, and what rank 0 hands back. Torch-free."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from trainer.simulation.messages import RoundStart, SimulatedRound


class SimulationFailed(ValueError):
    """The simulation cannot go on. The text is a sentence for the job's page."""


class SimulationPlan(BaseModel):
    """Where a rank starts, and where its files lie."""

    model_config = ConfigDict(frozen=True)

    start: RoundStart
    weights: Path | None = None
    """File of the start's weights; rank 0 alone needs it, and that of the memory."""
    memory: Path | None = None
    folder: Path
    """The attempt's work folder, shared by the ranks of one node."""
    kept: Path
    """Folder of what this job's clients keep from round to round on this node."""
    share_label_counts: bool = False

    @property
    def recorded_file(self) -> Path:
        """Where the agent of rank 0 writes the number of the last round that the server has."""
        return self.folder / "recorded"

    def last_recorded(self) -> int:
        """Return the last round that the server has."""
        try:
            return int(self.recorded_file.read_text())
        except (FileNotFoundError, ValueError):  # nothing yet
            return self.start.round - 1


class RoundPack(BaseModel):
    """Consecutive rounds, and the state after the last of them, in files of the attempt's folder."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")  # a loss may diverge

    rounds: list[SimulatedRound]
    weights: Path
    memory: Path | None = None
    label_counts: list[dict[str, int]] | None = None
