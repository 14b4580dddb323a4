"""Data that ships with tbkin."""
