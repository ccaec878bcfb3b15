"""Rows of the attribution matrix of one prompt, and what follows from them alone."""
