"""What every part needs around its work: files, devices, ranks, workers, interruption, console, randomness."""
