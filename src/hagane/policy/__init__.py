"""Checkpoint to actions."""

from hagane.policy.model_policy import ModelPolicy, load_policy, untrained_policy

__all__ = ["ModelPolicy", "load_policy", "untrained_policy"]
