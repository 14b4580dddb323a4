"""Questions about images, with answers, from the scene graphs of their captions."""
