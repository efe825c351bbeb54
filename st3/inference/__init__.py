"""A question and its answer: a model, a picture, a generation, a report."""
