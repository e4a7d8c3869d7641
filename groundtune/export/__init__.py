"""A run as a model for other servers, and the proof that it answers as the run did."""
