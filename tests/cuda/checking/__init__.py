"""The sections of the check, and what they share."""
