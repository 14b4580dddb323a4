"""Programs that show what tbkin can do; not part of the installed package."""
