"""ModelPolicy: a checkpoint that decides actions, in the shape of every other policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hagane.model import Generalist, Sample, load_config, load_served, reset_parameters, to_sample
from hagane.terms import ActionChunk, ConfigError, Embodiment, Observation, RunRecord, action_limits


class ModelPolicy:
    """The generalist as a `terms.Policy`: stateless, batched, no gradient.

    It also shows its own encode and decode (`roundtrip_actions`, `normalised`), which evaluation replays an
    expert episode through to find a wrong convention, normalisation or order before it costs a run.
    """

    def __init__(self, model: Generalist, checkpoint_id: str = "", record: RunRecord | None = None) -> None:
        self.model = model.eval()
        self.checkpoint_id = checkpoint_id
        self.record = record
        self.embodiments: Mapping[str, Embodiment] = {e.name: e for e in model.config.embodiments}

    def reset(self, embodiment: Embodiment, task: str) -> None:
        """Check that the weights know this machine, channel by channel.

        Raises:
            ConfigError: unknown embodiment, or its channels differ from those of training.
        """
        known = self.model.config.embodiments[self.model.config.index(embodiment.name)]
        for mine, theirs in zip(known.channels(), embodiment.channels(), strict=False):
            same = (mine.name, mine.kind, mine.shape, mine.history) == (
                theirs.name, theirs.kind, theirs.shape, theirs.history
            )  # fmt: skip
            if not same or mine.unit != theirs.unit:
                raise ConfigError(
                    f"channel {theirs.name!r} differs from the one the weights were trained on ({mine.name!r})",
                    where=embodiment.name,
                    next_step="serve with the embodiment file of the run, or finetune on the new one",
                )
        if len(list(known.channels())) != len(list(embodiment.channels())):
            raise ConfigError("has another number of channels than in training", where=embodiment.name)

    def act(self, observation: Observation) -> ActionChunk:
        """[N, H, A] actions in the channels' units, cut to the channels' limits."""
        with torch.inference_mode():
            actions = self.model.decide(self._sample(observation))
        e = self.embodiments[observation.embodiment]
        return ActionChunk(clip_to_limits(e, actions.cpu().numpy()), observation.time_ns, e.step_ns, self.checkpoint_id)

    def roundtrip_actions(self, embodiment: str, actions_NHA: NDArray[np.float32]) -> NDArray[np.float32]:
        """Actions through the policy's own encode and decode: must come back unchanged."""
        row = self.model.config.index(embodiment)
        x = self.model.normaliser.encode_actions(row, torch.from_numpy(actions_NHA))
        return self.model.normaliser.decode_actions(row, x, actions_NHA.shape[-1]).numpy()

    def normalised(self, observation: Observation) -> dict[str, NDArray[np.float32]]:
        """By channel, what the network really sees: [N, S, *shape] at unit scale."""
        sample = self._sample(observation)
        out = {}
        for slot in sample.layout.slots:
            w = sample.windows[slot.channel.name]
            out[slot.channel.name] = self.model.normaliser.observe(slot, w.values, w.valid).cpu().numpy()
        return out

    def _sample(self, observation: Observation) -> Sample:
        model = self.model
        layout = model.layouts[model.config.index(observation.embodiment)]
        return to_sample(observation, layout, model.config.widths.text_tokens, model.normaliser.centre.device)


def clip_to_limits(embodiment: Embodiment, actions_NHA: NDArray[np.float32]) -> NDArray[np.float32]:
    """Actions inside the action channels' low and high, where those are known."""
    low_A, high_A = action_limits(embodiment)
    return np.clip(actions_NHA, low_A, high_A).astype(np.float32)


def load_policy(checkpoint: Path, *, threads: int = 0) -> ModelPolicy:
    """A policy from a checkpoint folder, after every file was compared with its sha256.

    Args:
        checkpoint: the folder.
        threads: of this process, for torch; 0 leaves them as they are.

    Raises:
        CheckpointError: incomplete, or made for another model.
        CorruptError: a file was changed.
    """
    if threads:
        torch.set_num_threads(threads)
    model = Generalist(load_config(checkpoint))
    manifest = load_served(checkpoint, model)
    return ModelPolicy(model, manifest.id, manifest.record)


def untrained_policy(checkpoint: Path, *, threads: int = 0) -> ModelPolicy:
    """The same network and normaliser with weights that never learned: the row every table starts with."""
    policy = load_policy(checkpoint, threads=threads)
    reset_parameters(policy.model, policy.record.seed if policy.record else 0)
    torch.nn.init.normal_(policy.model.tower.w_out, std=policy.model.tower.w_out.shape[1] ** -0.5)
    return ModelPolicy(policy.model, "untrained")
