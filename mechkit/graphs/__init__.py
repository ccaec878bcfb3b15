"""Attribution graphs: which features carry an answer, along which paths, and whether that predicts the model."""
