"""Folders in the layouts of diffusers and transformers: tensors and configurations, both ways."""
