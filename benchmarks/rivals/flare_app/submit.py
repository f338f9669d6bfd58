"""Submit the exercise to a running FLARE, by its own FedAvg recipe.

python submit.py FOLDER ADMIN_STARTUP_KIT
"""

from __future__ import annotations

import sys
from pathlib import Path

from exercise import Exercise
from flare_app.persistor import ExercisePersistor
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import ProdEnv


def main(folder: str, startup_kit: str) -> None:
    exercise = Exercise(Path(folder))
    recipe = FedAvgRecipe(
        name="exercise",
        min_clients=exercise.clients,
        num_rounds=exercise.rounds,
        train_script=str(Path(__file__).with_name("client.py")),
        train_args=folder,
        model_persistor=ExercisePersistor(folder),
    )
    recipe.execute(ProdEnv(startup_kit_location=startup_kit))


if __name__ == "__main__":
    main(*sys.argv[1:])
