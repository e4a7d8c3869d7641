"""A model after training, or any other: evaluated, judged, compared, asked."""
