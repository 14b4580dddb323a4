"""Training: the plan, where it starts, the loop and its state. Importing a module of this loads torch."""
