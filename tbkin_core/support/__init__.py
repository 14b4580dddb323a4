"""What every part needs around its work: files, places, devices, ranks, workers, signals, console."""
