"""What preferences cost: DPO, IPO and KTO, from log-probabilities of whole answers.

With π the model, π_ref the model as the run began, y an answer to x and r(y) = ln π(y|x) − ln π_ref(y|x):

    dpo   −(1 − ε) ln σ(β (r(y_w) − r(y_l))) − ε ln σ(−β (r(y_w) − r(y_l)))     Rafailov et al., 2023, eq. 7
    ipo   (r(y_w) / |y_w| − r(y_l) / |y_l| − 1 / (2 β))²                        Azar et al., 2023, eq. 17
    kto   λ_D (1 − σ(β (r(y) − z₀)))  of a wanted answer                        Ethayarajh et al., 2024, eq. 7
          λ_U (1 − σ(β (z₀ − r(y))))  of an unwanted one

ε is the share of labels that are wrong (0: plain DPO). IPO is taken a token, as its authors did in their
experiments and TRL does; with sums, the longest answers would decide alone. z₀ is the mean over the step of
r for answers to other prompts, at least 0, without a gradient; every wanted and unwanted answer weighs the
same, in whichever pass or process it is. β r(y) is the implicit reward that people watch."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from stablelm.config.preference import PreferenceConfig

SUMS = ("loss", "rewards/chosen", "rewards/rejected", "rewards/accuracies", "logps/chosen", "logps/rejected")
"""Of what a tally holds the sums, before the numbers of losses, chosen and rejected answers."""


def compared(
    choice: PreferenceConfig, logps: Tensor, reference: Tensor, lengths: Tensor
) -> tuple[Tensor, Tensor]:
    """ln π and ln π_ref of chosen and rejected answers [2, P], tokens of each [2, P] → losses [P], tally
    [9]."""
    ratios = logps - reference
    if choice.loss == "ipo":
        averages = ratios / lengths
        losses = (averages[0] - averages[1] - 1 / (2 * choice.beta)) ** 2
    else:
        margins, wrong = choice.beta * (ratios[0] - ratios[1]), choice.label_smoothing
        losses = -(1 - wrong) * logsigmoid(margins) - wrong * logsigmoid(-margins)
    rewards, right = choice.beta * ratios.detach(), (ratios[0] > ratios[1]).double()
    told = [losses.detach(), *rewards, right, *logps.detach()]
    return losses, _tally(told, [len(losses)] * 3)


def judged(
    choice: PreferenceConfig, logps: Tensor, reference: Tensor, wanted: Tensor, kl: float
) -> tuple[Tensor, Tensor]:
    """ln π and ln π_ref of answers [P], whether each is wanted [P], z₀ → losses [P], tally [9]."""
    ratios = logps - reference
    good = wanted.to(ratios)  # 1 or 0
    sign, weights = 2 * good - 1, choice.desirable_weight * good + choice.undesirable_weight * (1 - good)
    losses = weights * (1 - torch.sigmoid(choice.beta * sign * (ratios - kl)))
    rewards, none = choice.beta * ratios.detach(), ratios.new_zeros(0)
    sides = (wanted, ~wanted)
    told = [
        losses.detach(),
        *(rewards[side] for side in sides),
        none,
        *(logps.detach()[side] for side in sides),
    ]
    return losses, _tally(told, [len(losses), int(wanted.sum()), int((~wanted).sum())])


def _tally(values: list[Tensor], counts: list[int]) -> Tensor:
    sums = [part.double().sum() for part in values]
    return torch.cat([torch.stack(sums), torch.tensor(counts, dtype=torch.float64, device=sums[0].device)])


def described(tally: Tensor, *, judging: bool, kl: float = 0.0) -> dict[str, float]:
    """Means out of the tallies of a step, added up, by the names that TRL gives them; what no answer of the
    step has a number for is left out."""
    sums, (losses, chosen, rejected) = tally[:-3].tolist(), tally[-3:].tolist()
    over = (losses, chosen, rejected, 0 if judging else losses, chosen, rejected)
    told = {name: total / count for name, total, count in zip(SUMS, sums, over, strict=True) if count}
    if chosen and rejected:
        told["rewards/margins"] = told["rewards/chosen"] - told["rewards/rejected"]
    return told | ({"kl": kl} if judging else {})
