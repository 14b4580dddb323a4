"""Text to text scene graph."""
