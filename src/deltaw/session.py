"""What is attached to a model: the adapters by name, which are live, and the forward of each adapted module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .entry import Entry, attribute
from .errors import NotLinear, SpecError, TargetError, nearest
from .mixed import Rows, mixed
from .ops import Affine, Map, delta, scale
from .sites import Site
from .sites.base import ModuleBase
from .sites.experts import ExpertSite
from .sites.module import Replace, Shim

if TYPE_CHECKING:
    from .attach import Adapted

ATTRIBUTE = "_deltaw"  # on the root module: its Session
CHILD = "deltaw"  # on every adapted module: its entries by adapter name
SELF = "self"  # the key of the module's own entry; experts are keyed "attr__3"
POOL = "deltaw_shared"  # on the root module: tensors shared by all sites of an adapter


class Bag(nn.ModuleDict):
    """Holds what is attached. An nn.Sequential calls all its children in turn: this one passes its input on."""

    def forward(self, x: Any) -> Any:
        return x


class Session:
    """The shared state behind one model. Everything a forward looks at is here."""

    def __init__(self) -> None:
        self.adapters: dict[str, Adapted] = {}
        self.live: tuple[tuple[str, float | Tensor], ...] = ()
        self.stacked = False  # live adapters of a hidden state follow one another, instead of adding up
        self.off = False
        self.rows: Rows | None = None
        self.signals: dict[str, Tensor] = {}
        self.notes: dict[str, Tensor] = {}  # what producers want to know again in the next pass over the same cache
        self.prompts: Tensor | None = None  # where the prompt of every row ends, where somebody has said so
        self.tasks: Tensor | None = None  # of every row, where somebody has said so
        self.places: dict[str, Place] = {}
        self.frozen: list[Tensor] = []  # base parameters that required a gradient before
        self.hook: Any = None
        self.after: Any = None
        self.seen: set[Any] = set()  # what was chosen in passes that keep a graph

    def check(self) -> None:
        """Gradient checkpointing runs forwards again inside the backward pass: under another choice of adapters than
        the first time the gradients would be of something else, so that is refused."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        live = tuple((n, id(w) if isinstance(w, Tensor) else w) for n, w in self.live)
        now = (live, self.off, self.stacked, id(self.rows) if self.rows is not None else 0)
        if torch._C._current_graph_task_id() == -1:  # not inside a backward pass
            if len(self.seen) > 1000:
                self.seen.clear()
            self.seen.add(now)
        elif self.seen and now not in self.seen:
            raise SpecError(
                "gradient checkpointing is running a forward again, but other adapters are live now than then: call "
                "backward inside the same `with` block, or before choosing others"
            )

    def known(self, name: str) -> str:
        if name not in self.adapters:
            raise TargetError(
                f"no adapter '{name}' is attached{nearest(name, self.adapters)}; attached: "
                f"{', '.join(self.adapters) or 'none'}"
            )
        return name


def session(model: nn.Module) -> Session:
    found = model.__dict__.get(ATTRIBUTE)
    if found is None:
        raise SpecError(f"nothing is attached to this {type(model).__name__}: call deltaw.attach or deltaw.load first")
    return found  # type: ignore[no-any-return]


class Restore:
    """What `activate`, `disabled` and `rows` return: leave the `with` block and the earlier state is back, also after
    an exception. It may be entered again. The state belongs to the model, not to the thread."""

    def __init__(self, shared: Session, now: bool = False, **new: Any):
        self.shared, self.new = shared, new
        self.old: list[dict[str, Any]] = []
        self.ahead = now  # applied before it was entered
        if now:
            self._apply()

    def _apply(self) -> None:
        self.old.append({k: getattr(self.shared, k) for k in self.new})
        for k, v in self.new.items():
            setattr(self.shared, k, v)

    def __enter__(self) -> None:
        if not self.ahead:
            self._apply()
        self.ahead = False

    def __exit__(self, *_: object) -> None:
        old = self.old.pop()
        for k, v in old.items():
            setattr(self.shared, k, v)
        if "live" in old:  # less what has been detached inside
            self.shared.live = tuple((n, w) for n, w in self.shared.live if n in self.shared.adapters)


def combine(
    site: Site, live: list[tuple[Entry, float | Tensor]], signals: dict[str, Tensor], stacked: bool = False
) -> Map:
    """Several adapters at one site: the base plus the weighted sum of their deltas, never one fed into another."""
    base = site.leaf()
    device = base.op.like.device.type
    if device != "meta" and torch.is_autocast_enabled(device):  # norms, Gram matrices and triangular solves keep their precision
        with torch.autocast(device, enabled=False):
            maps = [entry.layer(base, signals) for entry, _ in live]
    else:
        maps = [entry.layer(base, signals) for entry, _ in live]
    weights = [w for _, w in live]
    if site.gathers:
        return site.joined(maps, weights)
    if stacked and len(maps) > 1:
        if site.kind != "stream":
            raise SpecError(f"{site.name}: adapters are stacked on hidden states only; on a {site.kind} they add up (activate)")
        return Stacked(base, maps)
    if len(maps) == 1 and isinstance(weights[0], float) and weights[0] == 1.0:
        return maps[0]
    if all(isinstance(L, Replace) for L in maps):
        return Replace(_lerp(site, maps, weights))  # type: ignore[arg-type]
    if not all(isinstance(L, Affine) for L in maps):
        return Mixture(base, maps, weights)
    op, bias = base.op, base.bias
    for L, w in zip(maps, weights):
        assert isinstance(L, Affine)
        op = op + scale(w, delta(L.op, base.op))
        if L.bias is not base.bias and L.bias is not None:
            move = L.bias if base.bias is None else L.bias - base.bias
            bias = w * move if bias is None else bias + w * move
    return Affine(op, bias)


def _lerp(site: Any, maps: list[Replace], weights: list[float | Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, own in site.originals().items():
        moves = [w * (L.tensors[name] - own) for L, w in zip(maps, weights)]
        out[name] = own + torch.stack(moves).sum(0)
    return out


class Mixture(Map):
    """base(x) + sum of w_i (L_i(x) - base(x)): the sum for maps that are no operators."""

    def __init__(self, base: Affine, maps: list[Map], weights: list[float | Tensor]):
        self.base, self.maps, self.weights = base, maps, weights

    def __call__(self, x: Tensor) -> Tensor:
        y0 = self.base(x)
        y = y0
        for L, w in zip(self.maps, self.weights):
            y = y + w * (L(x) - y0)
        return y


class Stacked(Map):
    """h + (change of the last adapter to what the ones before it have made of h): the residual of each is h itself."""

    def __init__(self, base: Affine, maps: list[Map]):
        self.base, self.maps = base, maps

    def __call__(self, x: Tensor) -> Tensor:
        h = y = self.base(x)
        for L in self.maps:
            y = h + (L(y) - y)
        return y


class Place:
    """The instance-level forward of one adapted module. A plain object, so it survives pickle and deepcopy."""

    def __init__(self, module: nn.Module, shared: Session):
        self.module, self.session = module, shared
        self.base = ModuleBase(module)
        self.set_forward = self.base.set_forward
        self.shim = Shim(self.base)
        self.hook: Any = None
        self.sites: dict[str, Site] = {}  # by local key: "" for the module itself, "attr.3" for an expert

    def entry(self, name: str, key: str = "") -> Entry | None:
        bag: Any = self.module._modules.get(CHILD, {})  # gone if another library still holds this forward after detach
        a, k = attribute(name), attribute(key) or SELF
        return bag[a][k] if a in bag and k in bag[a] else None

    def live(self, key: str = "") -> list[tuple[Entry, float | Tensor]]:
        found = []
        for name, w in self.session.live:
            entry = self.entry(name, key)
            if entry is not None:
                found.append((entry, w))
        return found

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        s = self.session
        s.check()
        if s.off:
            return self.base.forward(*args, **kwargs)
        if "" in self.sites:
            site = self.sites[""]
            if s.rows is not None:
                return mixed(self, site, s.rows, args, kwargs)
            live = self.live()
            if not live:
                return self.base.forward(*args, **kwargs)
            return site.run(combine(site, live, s.signals, s.stacked), self.base.forward, args, kwargs)
        return self._stack(args, kwargs)

    def _stack(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module with expert stacks: rebuild the stacks that are adapted and run the module under them."""
        if self.session.rows is not None and any(self.session.rows.names):
            raise NotLinear("expert stacks see tokens sorted by expert, so rows of a batch cannot be told apart there")
        pieces: dict[str, list[Tensor]] = {}
        for key, site in self.sites.items():
            assert isinstance(site, ExpertSite)
            live, stack = self.live(key), site.base.stack
            rows = pieces.setdefault(site.attr, list(stack.unbind(0)))
            if live:
                new = site.merged(combine(site, live, self.session.signals))
                rows[site.base.index] = next(iter(new.values())).to(stack.dtype)
        return self.shim.under({a: torch.stack(rows) for a, rows in pieces.items()}, args, kwargs)
