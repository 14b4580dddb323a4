"""From a text to its scene graph: tags and tree by spaCy, the graph by a small network."""
