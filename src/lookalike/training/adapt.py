"""Fill in what a recipe leaves open, by the model that it starts from and the number of images (`training.adapt`)."""

from __future__ import annotations

from typing import Any

from lookalike.errors import InputError
from lookalike.models import locate, serialization
from lookalike.models.serialization import ModelConfig
from lookalike.recipe import Recipe

STEPS = 500  # of an adapted run, unless that is more or fewer epochs than these
MIN_EPOCHS, MAX_EPOCHS = 4, 30
EVALUATIONS = 5  # during a run
BATCH_SIZE, SMALLEST_BATCH, MIN_BATCHES = 32, 8, 4  # images in a batch; batches in an epoch, if there are enough
LARGER = 1.5  # times the image size of the model to start from, if that is small and there are not many images
SMALL_SIZE, MANY_IMAGES = 96, 10_000


def adapted(recipe: Recipe, images: int) -> Recipe:
    """The recipe with values for the keys that it leaves open; what it sets is kept.

    Network, options and preprocessing are those of `model.init`. Batch size, epochs and the number of evaluations
    follow from the number of images, and so does the image size: half as large again as that of the model, if that is
    at most 96 pixels and there are at most 10,000 images.

    Args:
        recipe: with `training.adapt`, which is false in the result.
        images: number of training images.

    Raises:
        InputError: `model.init` is empty, or no model.
    """
    if not recipe.model.init:
        raise InputError(
            "model.init: training.adapt takes network and preprocessing from the model to start from.",
            "Name one, such as model.init=default, or train from scratch: lookalike train quickstart --data DATA",
        )
    config, _ = serialization.read_config(ModelConfig, locate.find(recipe.model.init)[0])
    size = config.image_size
    if size <= SMALL_SIZE and images <= MANY_IMAGES:
        size = round(LARGER * size)
    batch_size = recipe.training.batch_size
    if "batch_size" not in recipe.training.model_fields_set:
        batch_size = min(BATCH_SIZE, max(images // MIN_BATCHES, SMALLEST_BATCH), images)
    epochs = recipe.training.epochs
    if "epochs" not in recipe.training.model_fields_set:
        epochs = min(max(round(STEPS * batch_size / images), MIN_EPOCHS), MAX_EPOCHS)
    found: dict[str, dict[str, Any]] = {
        "model": {
            "name": config.name,
            "options": {key: value for key, value in config.options.items() if key != "pretrained"},
        },
        "data": {"image_size": size, "crop_mode": config.crop_mode, "mean": config.mean, "std": config.std},
        "training": {
            "batch_size": batch_size,
            "epochs": epochs,
            "evaluate_every": max(1, epochs // EVALUATIONS),
        },
    }
    values: dict[str, Any] = {"training.adapt": False}
    for section, keys in found.items():
        given = getattr(recipe, section).model_fields_set
        values |= {f"{section}.{key}": value for key, value in keys.items() if key not in given}
    return recipe.with_values(values)
