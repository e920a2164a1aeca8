"""Products with Jacobians from recorded calls of a map, and what is left to a map that lacks a derivative."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attractorlab import trees
from attractorlab.maps import LatentMap
from attractorlab.types import State

ADJOINT = {torch.float64: 1e-6, torch.float32: 1e-2, torch.float16: 0.2, torch.bfloat16: 0.5}  # relative: ⟨u, Jv⟩ and ⟨Jᵀu, v⟩ may differ by this much
ANEW = {False: 3, True: 1}  # products that recording a row costs, with J and with its transpose: a record is made anew when it has wasted as many


class Record:
    """Products by walking back through one recorded call of the map at some rows of `z`.

    Back once is a product with the transpose. That walk is linear in what it is given, so a walk back through the walk is a product with J itself. An
    operation whose backward pass cannot be differentiated makes it unusable, or, unnoticed, wrong: the first product is therefore compared with the first walk.
    """

    def __init__(self, f: LatentMap, z: State, rows: Int[Tensor, " chunk"], *, transposed: bool = False) -> None:
        self.f, self.z, self.rows, self.transposed, self.checked = f, z, rows, transposed, transposed
        self.usable = self._make(torch.arange(len(rows)))

    def _make(self, at: Int[Tensor, " row"]) -> bool:
        """Run the map at the points numbered `at`; whether that could be recorded."""
        self.made, self.wasted = at, 0
        chosen = self.rows[at]
        f, z = self.f.take(chosen), trees.take(self.z, chosen)
        try:
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                leaves = {name: leaf.detach().clone().requires_grad_(True) for name, leaf in z.items()}
                out = f(leaves)
                self._out, self._leaves = [out[name] for name in z], list(leaves.values())
                if self.transposed:
                    return all(one.requires_grad for one in self._out)
                draw = torch.Generator().manual_seed(0)
                self._given = [torch.randn(one.shape[1:], generator=draw).to(one).expand_as(one).clone().requires_grad_(True) for one in self._out]
                # A leaf that the map overwrites without reading it is not in the graph: None stands for its zeros.
                self._back = torch.autograd.grad(self._out, self._leaves, self._given, create_graph=True, allow_unused=True)
                return all(one is None or one.requires_grad for one in self._back)
        except (NotImplementedError, RuntimeError):  # no second derivative, or an output that does not come from the state
            return False

    def __call__(self, v: Float[Tensor, "row dim"], at: Int[Tensor, " row"]) -> Float[Tensor, "row dim"] | None:
        """The product of row ``at[i]`` with ``v[i]``; `at` increases. Rows that left may come back: the map is then run anew. None: it cannot be had so."""
        self.wasted += len(self.made) - len(at)  # walked back through for nothing
        if self.wasted > ANEW[self.transposed] * len(at) or not bool(torch.isin(at, self.made).all()):
            self._make(at)
        place = torch.searchsorted(self.made, at)
        whole = v if len(at) == len(self.made) else v.new_zeros(len(self.made), v.shape[1]).index_copy_(0, place.to(v.device), v)
        like = trees.take(self.z, self.rows[self.made])
        given = list(trees.unflatten(whole.to(next(iter(like.values())).dtype), like).values())
        ends, start = (self._out, self._leaves) if self.transposed else (self._back, self._given)
        met = [(end, one) for end, one in zip(ends, given, strict=True) if end is not None]
        try:
            walked = torch.autograd.grad([end for end, _ in met], start, [one for _, one in met], retain_graph=True, allow_unused=True)
        except (NotImplementedError, RuntimeError):
            self.usable = False
            return None
        parts = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(start, walked, strict=True)]
        flat = torch.cat([one.flatten(1) for one in parts], dim=1).to(torch.float64)
        if not self.checked:
            self.usable, self.checked = self._adjoint(whole, flat), True
        if not self.usable:
            return None
        return flat if len(at) == len(self.made) else flat[place.to(v.device)]

    def _adjoint(self, v: Float[Tensor, "row dim"], product: Float[Tensor, "row dim"]) -> bool:
        """Whether ⟨u, Jv⟩ = ⟨Jᵀu, v⟩ at every row of finite numbers, u being what the recorded walk was given."""
        with torch.no_grad():
            u = torch.cat([one.flatten(1) for one in self._given], dim=1).to(v)
            back = [torch.zeros_like(leaf) if one is None else one for leaf, one in zip(self._leaves, self._back, strict=True)]
            pulled = torch.cat([one.flatten(1) for one in back], dim=1).to(v)
            gap = ((u * product).sum(1) - (pulled * v).sum(1)).abs()
            norm = torch.linalg.vector_norm
            scale = norm(u, dim=1) * norm(product, dim=1) + norm(pulled, dim=1) * norm(v, dim=1)
            return not bool((gap > ADJOINT[self._given[0].dtype] * scale).any())


def record_bytes(f: LatentMap, z: State) -> int:
    """The bytes that recording a call of `f` and the walk back through it adds per row."""
    if not trees.rows(z):
        return 0
    held = []
    for n in (1, 2):
        seen: dict[int, int] = {}

        def keep(tensor: Tensor, seen: dict[int, int] = seen) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            record = Record(f, z, torch.zeros(n, dtype=torch.int64))
        held.append(sum(seen.values()))
        del record
    return max(0, held[1] - held[0])


def has_products(f: LatentMap, z: State) -> bool:
    """Whether products with J can be had at the first row of `z`, by a record or in forward mode; else only those with its transpose.

    Raises:
        ValueError: If there is no way to those with the transpose either.
    """
    if not trees.rows(z):
        return True
    first = torch.zeros(1, dtype=torch.int64)
    f, z = f.take(first), trees.take(z, first)
    tangent = {name: torch.ones_like(leaf) for name, leaf in z.items()}
    record = Record(f, z, first)
    if record.usable and record(trees.flatten(tangent).to(torch.float64), first) is not None:
        return True
    try:
        f.jvp(z, tangent)
    except (NotImplementedError, RuntimeError):
        try:
            f.vjp(z, tangent)
        except (NotImplementedError, RuntimeError) as cause:
            raise not_differentiable(False) from cause
        return False
    return True


def not_differentiable(transposed: bool) -> ValueError:
    """The error of a map without the derivative that is needed."""
    mode = "reverse mode" if transposed else "forward mode, nor twice in reverse mode"
    return ValueError(
        f"The Jacobian of the map was asked for, but an operation of it cannot be differentiated in {mode}. "
        "Products with a Jacobian or its transpose need the derivative of every operation of a tick. "
        "Write the operation that is named above in torch, or give it a `jvp` and a `backward` in its torch.autograd.Function."
    )


def secant(f: LatentMap, z: State, v: State) -> State:
    """The Jacobian at `z` times `v` by central differences, its steps sized for the least error: about 1e-10 in float64, 1e-5 in float32."""
    eps = torch.finfo(next(iter(z.values())).dtype).eps
    length = trees.norm(v)
    h = eps ** (1 / 3) * trees.norm(z).clamp(min=1) / torch.where(length > 0, length, 1)
    step = {name: v[name] * h.view(-1, *[1] * (v[name].ndim - 1)) for name in z}
    ahead, behind = f({name: z[name] + step[name] for name in z}), f({name: z[name] - step[name] for name in z})
    return {name: (ahead[name] - behind[name]) / (2 * h).view(-1, *[1] * (z[name].ndim - 1)) for name in z}
