"""Recipes: importable functions that return a RunConfig, and `recipe_named` to find one by name."""

from ovbridge.recipes.names import RECIPES, recipe_named

__all__ = ["RECIPES", "recipe_named"]
