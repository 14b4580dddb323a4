"""Kinds of questions."""

YES_NO = "yes-no"
KINDS = ("color", "count", "object", "subject", "action", "place", "attribute", "wearing", YES_NO)
