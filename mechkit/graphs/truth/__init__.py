"""Whether a graph is true: what it predicts of interventions against what the model does."""
