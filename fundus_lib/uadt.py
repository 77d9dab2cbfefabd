"""Uncertainty-Aware Dynamic Thinking (OphthaReason): advantages shaped by how sure the policy was.

Known from the paper's figure: token entropy, an adaptive threshold that is a moving average, a tanh of the two, and
uncertain/certain x positive/negative advantages treated apart. The closed form and its constants are not public:
what stands here is this project's reconstruction. All that leans on TRL's private interfaces is in this file.
"""

import json
from pathlib import Path

import torch
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

STATE_FILE = "uadt_state.json"


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


class UADTGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose advantages pass through `shape_advantages` before the loss.

    Args, besides GRPOTrainer's: strength (0 is plain GRPO, bit for bit), temperature, decay as above; granularity
    "rollout" or "prompt" (each rollout takes the mean of its group).

    The entropy costs one more forward pass without gradient per generation batch.
    """

    def __init__(self, *args, strength: float = 0.5, temperature: float = 0.5, decay: float = 0.9,
                 granularity: str = "rollout", **kwargs):
        if granularity not in ("rollout", "prompt"):
            raise ValueError(f"UADT granularity is 'rollout' or 'prompt', not {granularity!r}.")
        super().__init__(*args, **kwargs)
        self.strength, self.temperature, self.decay, self.granularity = strength, temperature, decay, granularity
        self.threshold: float | None = None

    def _generate_and_score_completions(self, inputs):
        out = super()._generate_and_score_completions(inputs)
        if self.strength == 0 or not self.model.training:
            return out
        uncertainty = self._uncertainty(out)
        everywhere = self.accelerator.gather(uncertainty)  # tau is one number across data-parallel ranks
        self.threshold = update_threshold(self.threshold, everywhere.mean().item(), self.decay)
        if self.granularity == "prompt":  # groups are contiguous only in the gathered order
            groups = everywhere.view(-1, self.num_generations).mean(1).repeat_interleave(self.num_generations)
            rank, size = self.accelerator.process_index, len(uncertainty)
            uncertainty = groups[rank * size:(rank + 1) * size]
        plain = out["advantages"]
        out["advantages"] = shape_advantages(
            plain, uncertainty, self.threshold, strength=self.strength, temperature=self.temperature
        )
        self._metrics["train"]["uadt/threshold"].append(self.threshold)
        self._metrics["train"]["uadt/uncertainty"].append(everywhere.mean().item())
        return out

    @torch.no_grad()
    def _uncertainty(self, out: dict) -> Tensor:
        """Mean token entropy of each rollout of a scored batch, (B,)."""
        images = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
        _, entropies, _ = self._get_per_token_logps_and_entropies(
            self.model,
            torch.cat([out["prompt_ids"], out["completion_ids"]], dim=1),
            torch.cat([out["prompt_mask"], out["completion_mask"]], dim=1),
            out["completion_ids"].size(1),
            batch_size=self.args.per_device_train_batch_size,
            compute_entropy=True,
            **{name: out[name] for name in images if name in out},
        )
        return mean_entropy(entropies, out["completion_mask"])

    def _save_checkpoint(self, model, trial):
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            folder = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            (folder / STATE_FILE).write_text(json.dumps({"threshold": self.threshold}))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (Path(checkpoint) / STATE_FILE).exists():
            self.threshold = json.loads((Path(checkpoint) / STATE_FILE).read_text())["threshold"]
