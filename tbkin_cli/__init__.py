"""tbkin command line."""
