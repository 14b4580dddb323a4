"""Kinds of questions."""

KINDS = ("color", "count", "object", "subject", "action", "place", "attribute", "wearing", "yes-no")
