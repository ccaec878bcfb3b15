"""Features of models that add: taken out and swapped on many sums."""
