"""Measures and checks from papers, as plain functions over tensors, models and adapters.

    fairness_shift   how far a low-rank fine-tuning stays behind full fine-tuning, and whose accuracy pays
    knowledge_pack   which facts an adapter has learnt, and which it has cost
    lora_limits      the size of the entries that form attention scores, against sqrt(ln L)
    representer      which training examples an adapter is made of
    rl_subnetwork    the share of weights an update leaves alone; overlap of two updates
    stable_rank      |M|_F² / |M|_2² of a weight, an update or activations

Each returns numbers; none judges them.
"""

from . import fairness_shift, knowledge_pack, lora_limits, representer, rl_subnetwork, stable_rank

__all__ = ["fairness_shift", "knowledge_pack", "lora_limits", "representer", "rl_subnetwork", "stable_rank"]
