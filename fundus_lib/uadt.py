"""Uncertainty-Aware Dynamic Thinking (OphthaReason): advantages shaped by how sure the policy was.

Known from the paper's figure: token entropy, an adaptive threshold that is a moving average, a tanh of the two, and
uncertain/certain x positive/negative advantages treated apart. The closed form and its constants are not public:
what stands here is this project's reconstruction.
"""

import torch
from torch import Tensor, nn

from fundus_lib.shared_vision import SharedVisionGRPOTrainer


def mean_entropy(entropies: Tensor, mask: Tensor) -> Tensor:
    """u_i, the mean token entropy of each rollout in nats. entropies, mask: (B, T); padding does not count."""
    mask = mask.float()
    return (entropies.detach().float() * mask).sum(1) / mask.sum(1).clamp(min=1)


def update_threshold(threshold: float | None, batch_mean: float, decay: float = 0.9) -> float:
    """tau_s = rho * tau_(s-1) + (1 - rho) * mean of u; the first batch's mean starts it. rho = 0.9 is a guess."""
    return batch_mean if threshold is None else decay * threshold + (1 - decay) * batch_mean


def shape_advantages(
    advantages: Tensor, uncertainty: Tensor, threshold: float, *, strength: float = 0.5, temperature: float = 0.5
) -> Tensor:
    """A_i (1 + lambda * omega_i) where A_i >= 0, A_i (1 - lambda * omega_i) where A_i < 0.

    omega_i = tanh((u_i - tau) / T). Uncertain and right: explore more; uncertain and wrong: punished more softly.
    The sign is kept, the factor stays within [1 - lambda, 1 + lambda], and strength 0 returns `advantages` itself.

    Args:
        advantages: (B,) or (B, T), one value a rollout or a token.
        uncertainty: (B,) mean token entropy of each rollout, in nats.
        threshold: tau, in nats. strength: lambda (0.5 is a guess). temperature: T in nats (0.5 is a guess).

    Raises:
        ValueError: strength outside [0, 1) or temperature not positive.
    """
    if not 0 <= strength < 1 or temperature <= 0:
        raise ValueError(f"UADT needs 0 <= strength < 1 and temperature > 0, got {strength} and {temperature}.")
    if strength == 0:
        return advantages
    omega = torch.tanh((uncertainty.detach().float() - threshold) / temperature).to(advantages.dtype)
    if advantages.dim() == 2:
        omega = omega[:, None]
    return advantages * torch.where(advantages >= 0, 1 + strength * omega, 1 - strength * omega)


class Overheard:
    """A model that decodes, with the entropy of every next token in nats kept aside, (B, rollouts) a step.

    It is that of the whole vocabulary at the sampling temperature, as TRL's loss computes it.
    """

    def __init__(self, model: nn.Module, temperature: float, first: Tensor, rollouts: int):
        self.model, self.temperature, self.generation_config = model, temperature, model.generation_config
        self.entropies = [self.entropy(first)[:, None].expand(-1, rollouts)]

    def entropy(self, logits: Tensor) -> Tensor:
        """(..., vocabulary) -> (...)"""
        logp = (logits.float() / self.temperature).log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def tokens(self) -> Tensor:
        """(rollouts of all pairs, tokens)"""
        return torch.stack(self.entropies, -1).flatten(0, 1)

    def __call__(self, past_key_values, **inputs):
        out = self.model(past_key_values=past_key_values, **inputs)
        self.entropies.append(torch.zeros_like(self.entropies[0]))
        self.entropies[-1][past_key_values.pairs] = self.entropy(out.logits)
        return out


class UADTGRPOTrainer(SharedVisionGRPOTrainer):
    """The trainer of shared_vision whose advantages pass through `shape_advantages` before the loss.

    Args, besides its own: strength (0 is plain GRPO), temperature, decay as above; granularity "rollout" or "prompt"
    (each rollout takes the mean of its group).

    The entropy is taken while the rollouts are sampled, whole batch by whole batch, so that the threshold does not
    depend on how a batch is cut up for the loss. Where something else sampled them (vLLM, share=False), it costs one
    more forward pass without gradient.
    """

    def __init__(self, *args, strength: float = 0.5, temperature: float = 0.5, decay: float = 0.9,
                 granularity: str = "rollout", **kwargs):
        if granularity not in ("rollout", "prompt"):
            raise ValueError(f"UADT granularity is 'rollout' or 'prompt', not {granularity!r}.")
        super().__init__(*args, **kwargs)
        self.strength, self.uadt_temperature, self.decay, self.granularity = strength, temperature, decay, granularity
        self.threshold: float | None = None
        self.heard: Overheard | None = None

    def listening(self, model, first, rollouts):
        self.heard = Overheard(model, self.temperature, first, rollouts) if self.strength else None
        return self.heard or model

    def scored(self, batch: dict) -> None:
        if self.strength == 0 or not self.model.training:
            return
        heard, self.heard = self.heard, None
        entropies = heard.tokens() if heard else self.forward_entropy(batch)
        uncertainty = mean_entropy(entropies, batch["completion_mask"][:, :entropies.shape[1]])
        everywhere = self.accelerator.gather(uncertainty)  # tau is one number across data-parallel ranks
        self.threshold = update_threshold(self.threshold, everywhere.mean().item(), self.decay)
        if self.granularity == "prompt":  # groups are contiguous only in the gathered order
            groups = everywhere.view(-1, self.num_generations).mean(1).repeat_interleave(self.num_generations)
            rank, size = self.accelerator.process_index, len(uncertainty)
            uncertainty = groups[rank * size:(rank + 1) * size]
        batch["advantages"] = shape_advantages(
            batch["advantages"], uncertainty, self.threshold, strength=self.strength, temperature=self.uadt_temperature
        )
        self._metrics["train"]["uadt/threshold"].append(self.threshold)
        self._metrics["train"]["uadt/uncertainty"].append(everywhere.mean().item())

    def extra_state(self) -> dict:
        return {"threshold": self.threshold}

    def restore(self, state: dict) -> None:
        self.threshold = state["threshold"]
