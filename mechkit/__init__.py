"""mechkit: from a prompt to a mechanism that has been tested."""
