"""What a trained model samples, looked at and scored."""
