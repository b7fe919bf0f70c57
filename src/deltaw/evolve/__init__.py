"""Training without gradients: many changed copies of a model in one batch, told apart by seeds, compared by a score.

    from deltaw.evolve import Eggroll, run
    search = Eggroll(model, lr=1e-2, sigma=1e-2, population=256)       # a model's own weights, or an attached adapter
    result = run(search, batch=lambda epoch: rows_of(epoch), score=lambda model, rows: reward_of(model, rows), epochs=100)

`score` sees a batch in which each row belongs to a member of the population, and gives one number per row; more is better. The products
of the base's weights are made once for all members.
"""

from .eggroll import Eggroll
from .essa import Essa
from .loop import Result, Search, run
from .members import Members
from .noise import Noise
from .shaping import shape_fitness

__all__ = ["Eggroll", "Essa", "Members", "Noise", "Result", "Search", "run", "shape_fitness"]
