"""What every part needs around its work: files, devices, ranks, workers, signals, console, randomness."""
