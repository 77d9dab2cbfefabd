"""Uncertainty-Aware Dynamic Thinking (OphthaReason): advantages shaped by how sure the policy was.

Known from the paper's figure: token entropy, an adaptive threshold that is a moving average, a tanh of the two, and
uncertain/certain x positive/negative advantages treated apart. The closed form and its constants are not public:
`shape_advantages` is this project's reconstruction. Four published relatives stand beside it in RELATIVES.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import PartialState
from accelerate.utils import gather, gather_object
from torch import Tensor, nn

from fundus_lib.answers import extract_answer
from fundus_lib.shared_vision import SharedVisionGRPOTrainer


def rollout_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens of each rollout: of entropies, u_i. values, mask: (B, T); padding does not count."""
    mask = mask.float()
    return (values.detach().float() * mask).sum(1) / mask.sum(1).clamp(min=1)


def update_threshold(threshold: float | None, batch_mean: float, decay: float = 0.9) -> float:
    """tau_s = rho * tau_(s-1) + (1 - rho) * mean of u; the first batch's mean starts it. rho = 0.9 is a guess."""
    return batch_mean if threshold is None else decay * threshold + (1 - decay) * batch_mean


def omega(uncertainty: Tensor, threshold: float, temperature: float = 0.5) -> Tensor:
    """tanh((u_i - tau) / T): above 0 for a rollout less certain than usual. All in nats; T = 0.5 is a guess."""
    return torch.tanh((uncertainty.detach().float() - threshold) / temperature)


def shape_advantages(
    advantages: Tensor, uncertainty: Tensor, threshold: float, *, strength: float = 0.5, temperature: float = 0.5
) -> Tensor:
    """A_i (1 + lambda * omega_i) where A_i >= 0, A_i (1 - lambda * omega_i) where A_i < 0.

    Uncertain and right: explore more; uncertain and wrong: punished more softly. The sign is kept, the factor stays
    within [1 - lambda, 1 + lambda]. advantages: (B,), or (B, T) one a token. uncertainty: (B,) u_i in nats. threshold:
    tau. strength: lambda (0.5 is a guess); 0 returns `advantages` itself. temperature: T in nats (0.5 is a guess).
    ValueError where strength is outside [0, 1) or temperature not positive.
    """
    if not 0 <= strength < 1 or temperature <= 0:
        raise ValueError(f"UADT needs 0 <= strength < 1 and temperature > 0, got {strength} and {temperature}.")
    if strength == 0:
        return advantages
    change = strength * omega(uncertainty, threshold, temperature).to(advantages.dtype)
    change = change[:, None] if advantages.dim() == 2 else change
    return advantages * torch.where(advantages >= 0, 1 + change, 1 - change)


@dataclass(frozen=True)
class Doubt:
    """How unsure the policy was of B rollouts, beside the others of their groups. Nats; nothing carries a gradient."""
    tokens: Tensor  # (B, T) entropy of each token, 0 on padding
    rollout: Tensor  # (B,) u_i, its mean
    group: Tensor  # (B,) mean of u over the rollout's group
    spread: Tensor  # (B,) standard deviation of u in the group
    semantic: Tensor  # (B,) how many meanings the group's answers have: 0 one, 1 as many as rollouts
    batch: float  # mean of u over the whole batch


def semantic_entropy(answers: Sequence, rollouts: int) -> Tensor:
    """SE / ln G of each group of G answers: the entropy of how they fall into equal ones, over its maximum. SEED-GRPO
    weighs an answer by its probability under the policy; here, as a guess, every rollout weighs the same."""
    groups = [answers[start:start + rollouts] for start in range(0, len(answers), rollouts)]
    shares = (torch.tensor(list(Counter(group).values())) / rollouts for group in groups)
    return torch.stack([torch.special.entr(share).sum() for share in shares]) / math.log(rollouts)


def doubt_of(entropies: Tensor, mask: Tensor, answers: Sequence, rollouts: int) -> Doubt:
    """The Doubt of this process's rollouts; groups and batch are those of all processes, whoever holds their rollouts.
    entropies, mask: (B, T). answers: B, what each rollout answers; equal ones mean the same. rollouts: of a group."""
    here = rollout_mean(entropies, mask)
    everywhere = gather(here).view(-1, rollouts)  # groups are contiguous only in the gathered order
    semantic = semantic_entropy(gather_object(list(answers)), rollouts).to(here.device)
    first = PartialState().process_index * len(here)
    group, spread, semantic = (value.repeat_interleave(rollouts)[first:first + len(here)]
                               for value in (everywhere.mean(1), everywhere.std(1), semantic))
    return Doubt(entropies.detach().float() * mask, here, group, spread, semantic, everywhere.mean().item())


def cheng(advantages: Tensor, doubt: Doubt, alpha: float = 0.4, kappa: float = 2.0) -> Tensor:
    """A + min(alpha * H_t, |A| / kappa), (B, T), after Cheng et al., arXiv 2506.14758: doubtful tokens gain, right or
    wrong. The formula is the paper's; alpha and kappa are as others report them of its GRPO runs, not checked."""
    advantages = advantages[:, None]
    return advantages + torch.minimum(alpha * doubt.tokens, advantages.abs() / kappa)


def seed(advantages: Tensor, doubt: Doubt, alpha: float = 0.02) -> Tensor:
    """A * f(alpha * SE / SE_max), SEED-GRPO, arXiv 2505.12346, Eq. 6: a question answered in many ways counts less.
    SE_max = ln G and alpha are the paper's as reported; it leaves f open, and f(x) = 1 - x is a guess."""
    return advantages * (1 - alpha * doubt.semantic)


def ucas(advantages: Tensor, doubt: Doubt, right: float = 0.25, wrong: float = 0.35) -> Tensor:
    """A * exp(-0.25 z) where A > 0, else A * exp(0.35 z), UCAS, arXiv 2510.10649, first stage; z is the confidence of
    the rollout, standardised in its group. Constants: the authors' code, whose confidence is KL(uniform || p); here it
    is -u, a guess. 1e-4 as in TRL: with their 1e-6, rounding tells equal rollouts apart. No second stage, per logit."""
    z = (doubt.group - doubt.rollout) / (doubt.spread + 1e-4)
    return advantages * torch.where(advantages > 0, -right * z, wrong * z).exp()


def edge(advantages: Tensor, doubt: Doubt, low: float = 0.1, high: float = 10.0) -> Tensor:
    """A * mean(H) / H_i, EDGE-GRPO, arXiv 2507.21848: certain rollouts count more, right or wrong. The mean is the
    group's (the authors' code: the forward batch's, which depends on how it is cut up). H_i / mean(H) stays within
    [0.1, 10], bounds their code holds but does not use; a group without any entropy stays as it is."""
    return advantages / (doubt.rollout / doubt.group).nan_to_num(1.0).clamp(low, high)


RELATIVES = {"cheng": cheng, "seed": seed, "ucas": ucas, "edge": edge}


def shape(form: str, advantages: Tensor, doubt: Doubt, threshold: float, *, strength: float = 0.5,
          temperature: float = 0.5, granularity: str = "rollout") -> Tensor:
    """Advantages (B,) in the form "uadt" or one of RELATIVES: (B,), of cheng (B, T). A zero stays zero in each.

    threshold, temperature and granularity (whose mean entropy counts: the "rollout"'s or the "prompt"'s) are those of
    "uadt", and so is strength, but that 0 is plain GRPO in any form: `advantages` itself.
    """
    if strength and form in RELATIVES:
        return RELATIVES[form](advantages, doubt)
    uncertainty = doubt.group if granularity == "prompt" else doubt.rollout
    return shape_advantages(advantages, uncertainty, threshold, strength=strength, temperature=temperature)


class Overheard:
    """A model that decodes, with the entropy of every next token in nats kept aside, (B, rollouts) a step. It is that
    of the whole vocabulary at the sampling temperature, as TRL's loss computes it."""

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
    """The trainer of shared_vision whose advantages pass through `shape` before the loss.

    Args, besides its own: form, strength (0 is plain GRPO), temperature and granularity of `shape`; decay of tau;
    update: tau moves "before" it is used or "after" (a guess; the first batch starts it either way).

    The entropy is taken while the rollouts are sampled, whole batch by whole batch, so that the threshold does not
    depend on how a batch is cut up for the loss. Where something else sampled them (vLLM, share=False), it costs one
    more forward pass without gradient. TRL logs advantages as they were; the shaped ones stand beside them.
    """

    def __init__(self, *args, form: str = "uadt", strength: float = 0.5, temperature: float = 0.5, decay: float = 0.9,
                 granularity: str = "rollout", update: str = "before", **kwargs):
        for name, value, known in (("form", form, ("uadt", *RELATIVES)), ("update", update, ("before", "after")),
                                   ("granularity", granularity, ("rollout", "prompt"))):
            if value not in known:
                raise ValueError(f"UADT's {name} is one of {', '.join(known)}, not {value!r}.")
        super().__init__(*args, **kwargs)
        self.form, self.strength, self.uadt_temperature, self.decay = form, strength, temperature, decay
        self.granularity, self.update = granularity, update
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
        plain, mask = batch["advantages"], batch["completion_mask"]
        texts = self.processing_class.batch_decode(batch["completion_ids"], skip_special_tokens=True)
        doubt = doubt_of(nn.functional.pad(entropies, (0, mask.shape[1] - entropies.shape[1])), mask,
                         [extract_answer(text, kind="open").value for text in texts], self.num_generations)
        before, self.threshold = self.threshold, update_threshold(self.threshold, doubt.batch, self.decay)
        used = before if self.update == "after" and before is not None else self.threshold
        shaped = batch["advantages"] = shape(self.form, plain, doubt, used, strength=self.strength,
                                             temperature=self.uadt_temperature, granularity=self.granularity)
        shaped = rollout_mean(shaped, mask) if shaped.dim() == 2 else shaped
        above = omega(doubt.group if self.granularity == "prompt" else doubt.rollout, used, self.uadt_temperature)
        plain, shaped, uncertainty, above = gather(torch.stack([plain, shaped, doubt.rollout, above], 1)).T
        larger = (shaped.abs() > plain.abs())[plain != 0].float().mean()  # of none: nan, which TRL leaves out
        for name, value in {"uncertainty": doubt.batch, "threshold": used, "omega": above.mean().item(),
                            "amplified": larger.item()}.items():
            self._metrics["train"][f"uadt/{name}"].append(value)
        for name, values in {"uncertainty": uncertainty, "omega": above, "shaped_advantage": shaped}.items():
            self._logs["extra"][name].extend(values.tolist())  # rows of rollouts.parquet

    def extra_state(self) -> dict:
        return {"threshold": self.threshold}

    def restore(self, state: dict) -> None:
        self.threshold = state["threshold"]
