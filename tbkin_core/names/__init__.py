"""Names of things: vocabularies, lemmas, and how alike two names are."""
