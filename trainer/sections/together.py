"""What choices of several sections must agree on. Each check raises a Disagreement that names the fields."""

from __future__ import annotations

from trainer.sections.data import Data
from trainer.sections.disagreement import Disagreement
from trainer.sections.federated import Federated
from trainer.sections.model import LinearModel, Model
from trainer.sections.training import SgdOptimizer, Training


def check_strategy(federated: Federated, model: Model, training: Training) -> None:
    """The strategy's local part must mean something for the model and the optimizer."""
    strategy, optimizer = federated.strategy.name, training.optimizer
    if strategy == "fedbn" and (isinstance(model, LinearModel) or model.options.norm == "none"):
        raise Disagreement(
            "FedBN keeps the normalisation layers at the clients, and this model has none: set `federated.strategy` to "
            "`federated.strategy=fedavg`, or give an MLP or a CNN a normalisation."
        )
    if strategy not in ("scaffold", "fednova", "qfedavg"):
        return
    if not isinstance(optimizer, SgdOptimizer):
        raise Disagreement(
            f"The strategy `federated.strategy={strategy}` is defined for clients that train with plain steps: set "
            "`training.optimizer` to `training.optimizer=sgd`, or choose another `federated.strategy`."
        )
    if strategy == "scaffold" and optimizer.momentum:
        raise Disagreement(
            "SCAFFOLD's control variates correct single gradients, not sums of old ones: set `training.optimizer.momentum` "
            "to 0, or choose another `federated.strategy`."
        )
    if strategy == "fednova" and optimizer.nesterov:
        raise Disagreement(
            "FedNova's weights are defined for plain and for heavy-ball momentum: switch `training.optimizer.nesterov` off."
        )


def check_local_privacy(federated: Federated, model: Model, data: Data) -> None:
    """DP-SGD's noise must cover all that single rows leave in the update."""
    if federated.local_privacy is None:
        return
    if not isinstance(model, LinearModel) and model.options.norm == "batch":
        raise Disagreement(
            "Batch normalisation mixes the rows of a batch, so that no gradient belongs to a single row, and local differential "
            "privacy cuts those: set `model.options.norm` to `model.options.norm=layer` or `model.options.norm=group`, or switch "
            "`federated.local_privacy` off."
        )
    if data.scaling == "standard":
        raise Disagreement(
            "Local differential privacy adds its noise to gradients, and the columns' means and deviations would come from the "
            "rows without any: set `data.scaling` to `data.scaling=none` (a model with the normalisation layer or group copes "
            "with columns of different sizes)."
        )


def check_batch_norm(federated: Federated | None, model: Model, training: Training) -> None:
    """Batch normalisation needs several rows in each batch, and running variances that no sum carries below 0."""
    if isinstance(model, LinearModel) or model.options.norm != "batch":
        return
    if training.batch_size < 2:
        raise Disagreement(
            "Batch normalisation compares the rows of a batch: set `training.batch_size` to 2 or more, or "
            "`model.options.norm` to `model.options.norm=layer` or `model.options.norm=group`."
        )
    if federated is None:
        raise Disagreement(
            "In a distributed job, batch normalisation would depend on how rows fall to the ranks: set `model.options.norm` "
            "to `model.options.norm=layer` or `model.options.norm=group`."
        )
    if federated.strategy.name != "fedbn" and (cause := _leaves_the_clients_range(federated)):
        raise Disagreement(
            f"Batch normalisation's running variances must not fall below 0, and {cause} may take them there: set "
            "`model.options.norm` to `model.options.norm=layer` or `model.options.norm=group`, or choose the strategy "
            "`federated.strategy=fedbn`, which keeps them at the clients."
        )


def _leaves_the_clients_range(federated: Federated) -> str:
    """What may put the next weights outside the range of the last ones and the clients'; empty where nothing does."""
    server = federated.server_optimizer
    if federated.privacy:
        return "the noise of privacy"
    if federated.strategy.name in ("fednova", "qfedavg"):
        return f"the strategy `federated.strategy={federated.strategy.name}`"
    if federated.encoding.name != "float32":
        return f"the encoding `federated.encoding={federated.encoding.name}`"
    if server.name != "sgd" or server.lr > 1 or server.momentum:
        return "the server's optimizer"
    return ""
