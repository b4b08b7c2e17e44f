"""LightningModules for pre-training."""
