"""Samples of a trained model."""
