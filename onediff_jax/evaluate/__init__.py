"""Scores of what a trained model samples."""
