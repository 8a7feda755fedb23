"""
Muon for the weight matrices of hidden layers beside AdamW for all else, as one optimizer that `Trainer` can use.

Muon (torch.optim.Muon) makes the update of a matrix orthogonal. With the scale of "Muon is Scalable for LLM Training"
(arXiv 2502.16982, section 2.2) it takes the learning rate and the weight decay that AdamW would have.
"""

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """
    Muon and AdamW behind the interface of one optimizer.

    Args:
        groups (`list[dict]`):
            Parameter groups with `params`, `lr` and `weight_decay`; those with `use_muon` hold matrices only.
        betas (`tuple[float, float]`), eps (`float`): of AdamW.
    """

    def __init__(self, groups: list[dict], betas: tuple[float, float], eps: float):
        muon_groups = [group for group in groups if group["use_muon"]]
        adamw_groups = [group for group in groups if not group["use_muon"]]
        self._parts = []
        if muon_groups:
            self._parts.append(torch.optim.Muon(muon_groups, adjust_lr_fn="match_rms_adamw"))
        if adamw_groups:
            self._parts.append(torch.optim.AdamW(adamw_groups, betas=betas, eps=eps, fused=True))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self):
        """Share groups and state with the parts, so that schedulers and checkpoints see what the parts see."""
        start = 0
        for part in self._parts:
            end = start + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[start:end], self.state
            start = end

    def load_state_dict(self, state_dict: dict):
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self._parts:
            part.step()
        return loss


def split_for_muon(groups: list[dict], model: nn.Module) -> list[dict]:
    """
    Divide each parameter group into the matrices of hidden layers, for Muon, and all other parameters.

    The others are embeddings (a tied head with them), norms, biases, convolutions, and an output head.
    """
    outer = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    outer += [] if head is None else [head]
    excluded = {id(parameter) for module in outer for parameter in module.parameters()}
    split = []
    for group in groups:
        for use_muon in (True, False):
            params = [
                parameter
                for parameter in group["params"]
                if (parameter.ndim == 2 and id(parameter) not in excluded) == use_muon
            ]
            if params:
                kept = {name: group[name] for name in ("lr", "weight_decay")}
                split.append({**kept, "params": params, "use_muon": use_muon})
    return split
