"""What every part needs around its work: files, devices, ranks, workers, console, randomness."""
