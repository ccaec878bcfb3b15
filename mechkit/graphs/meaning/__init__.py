"""What nodes of a graph stand for, and which belong together."""
