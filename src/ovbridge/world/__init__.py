"""The built-in world: everyday nouns drawn as vector outlines, written to disk in COCO's forms."""
