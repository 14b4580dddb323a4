"""Region features: extractors, imports, and the store."""
