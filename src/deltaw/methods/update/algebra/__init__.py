"""Optimisers as sentences: a frame for the gradient of one matrix, an inner optimiser on the coordinates, what becomes of
the rest of the gradient, what becomes of the state when the frame moves, and where the result is written.

    Sub(frame, inner, residual=Drop(), carry=Keep(), every=T, scale=1.0)

    step(G):  if t mod T = 0: new = frame.refresh(G, W); the inner state goes through carry(move = down_new . up_old)
              C = down(G);  U, gain = inner(C);  D = gain (scale up(U) + residual(G - up(C)));  W <- W - lr D
              (decoupled weight decay before or after);  frame.post(G): an online update of the frame, after its use

frames.py, bases.py: coordinate systems. inners.py, residuals.py, carries.py: the other words. sub.py: the sentence.
optimizer.py: a torch.optim.Optimizer over such rules. State: per parameter a dict of tensors, nested by word.
"""

from __future__ import annotations

from .bases import Basis, Rsvd, Svd, signed
from .carries import Carry, Keep, Move, Prune, Reset
from .draw import Draw
from .frames import Coords, Frame, Side, width
from .inners import SGD, Adam, Ema, Inner, Sign
from .optimizer import Rule, Step, SubOptimizer, Unit
from .residuals import Drop, Phi, Raw, Residual, SignSGD
from .split import matrices
from .sub import Plain, Sub

__all__ = [
    "SGD", "Adam", "Basis", "Carry", "Coords", "Draw", "Drop", "Ema", "Frame", "Inner", "Keep", "Move", "Phi", "Plain", "Prune",
    "Raw", "Reset", "Residual", "Rsvd", "Rule", "Side", "Sign", "SignSGD", "Step", "Sub", "SubOptimizer", "Svd", "Unit", "matrices", "signed", "width",
]  # fmt: skip
