"""Optimisers as sentences: a frame for the gradient of one matrix, an inner optimiser on the coordinates, what becomes of
the rest of the gradient, what becomes of the state when the frame moves, and where the result is written.

    Sub(frame, inner, residual=Drop(), carry=Keep(), every=T, scale=1.0)

    step(G):  if t mod T = 0: new = frame.refresh(G, W); the inner state goes through carry(move = down_new . up_old)
              C = down(G);  U, gain = inner(C);  D = gain (scale up(U) + residual(G - up(C)));  W <- W - lr D
              (decoupled weight decay before or after);  frame.post(G): an online update of the frame, after its use
              first(G) and finish(D), where given: before all of this, and before W moves

frames.py, bases.py: coordinate systems. inners.py, residuals.py, carries.py: the other words. sub.py: the sentence.
turns.py: rules for units that are active in turns. reparam.py: rules on another parametrisation of the matrix.
optimizer.py: a torch.optim.Optimizer over such rules. State: per parameter a dict of tensors, nested by word.
"""

from __future__ import annotations

from .bases import Basis, Haar, Power, Rsvd, Solver, Svd, SvdSample, solver
from .carries import Carry, Keep, Move, Move12, Prune, Reset
from .draw import Draw
from .frames import Coords, Frame, HeadShared, Online, Side, Sketch, TwoSided, Whole, width
from .inners import HF_ADAM, SGD, Adafactor, Adam, Adam8bit, Ema, Inner, Lion, Sign, Word, inner
from .optimizer import Rule, Step, SubOptimizer, Unit
from .reparam import WeightNorm
from .residuals import Drop, Feedback, Phi, Raw, Residual, SignSGD, Sparse
from .split import MatrixUpdate, matrices
from .sub import Plain, Relative, Sub
from .turns import Master, Order, Turns, turn

__all__ = [
    "HF_ADAM", "SGD", "Adafactor", "Adam", "Adam8bit", "Basis", "Carry", "Coords", "Draw", "Drop", "Ema", "Feedback", "Frame", "Haar",
    "HeadShared", "Inner", "Keep", "Lion", "Master", "MatrixUpdate", "Move", "Move12", "Online", "Order", "Phi", "Plain", "Power",
    "Prune", "Raw", "Relative", "Reset", "Residual", "Rsvd", "Rule", "Side", "Sign", "SignSGD", "Sketch", "Solver", "Sparse", "Step",
    "Sub", "SubOptimizer", "Svd", "SvdSample", "Turns", "TwoSided", "Unit", "WeightNorm", "Whole", "Word", "inner", "matrices",
    "solver", "turn", "width",
]  # fmt: skip
