"""tbkin core library."""
