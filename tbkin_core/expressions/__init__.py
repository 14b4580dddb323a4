"""Referring expressions: what words single out one of the annotated objects of an image."""
