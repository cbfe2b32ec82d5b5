"""The learning rate of a step, as a pure function of the step: nothing to save, nothing to resume."""

import math

from cmunext.training.recipe import Recipe


def learning_rate(recipe: Recipe, step: int, total_steps: int) -> float:
    """The learning rate used by optimisation step `step` (0-based) of `total_steps`.

    poly : base * (1 - t / T) ** power.
    cosine : base * (1 + cos(pi * t / T)) / 2, from base to 0 along half a cosine.
    constant : base.
    T is `total_steps` and t the step; with `schedule_lag` t is the step before (0 for the first two steps), because the released code
    sets the rate after the step with a counter that it has not raised yet. All rise linearly from 0 over the first `warmup_epochs`
    worth of steps, without a lag.
    """
    warmup_steps = round(recipe.warmup_epochs / recipe.epochs * total_steps)
    position = max(step - 1, 0) if recipe.schedule_lag else step
    if step < warmup_steps:
        return recipe.learning_rate * (step + 1) / warmup_steps
    if recipe.schedule == "constant":
        return recipe.learning_rate
    progress = position / total_steps
    if recipe.schedule == "poly":
        return recipe.learning_rate * (1 - progress) ** recipe.poly_power
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))
