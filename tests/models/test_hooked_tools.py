"""A hooked model in the hands of everything else: it cannot be told from a model of our own."""

import torch
from torch import Tensor, nn

import attractorlab as al
from attractorlab.models import EqR, EqRConfig
from attractorlab.types import Instance
from tests.models import hooked

ROWS = 4


class Served(nn.Module):
    """Our reasoner, as a plain module that somebody wrote around it."""

    def __init__(self, reasoner: EqR, ticks: int) -> None:
        super().__init__()
        self.reasoner, self.ticks = reasoner, ticks

    def forward(self, tokens: Tensor, z_H: Tensor, z_L: Tensor) -> dict[str, Tensor]:
        drive = {"x": self.reasoner.embed_tokens(tokens)}
        z = {"z_H": z_H, "z_L": z_L}
        with torch.no_grad():
            for _ in range(self.ticks):
                z = self.reasoner.tick(z, drive)
        return dict(self.reasoner.readout(z))


def test_a_reasoner_hooked_from_outside_is_the_one_bound_from_inside(generator: torch.Generator) -> None:
    config = EqRConfig(task="sudoku", sites=16, vocabulary=6, width=8, heads=2, blocks=1, mixer="mlp", L_cycles=3)
    reasoner = EqR(config, generator=generator).to(torch.float64)
    tokens = torch.randint(0, 6, (ROWS, 16), generator=generator)
    own = reasoner.bind(Instance(tokens, None, tuple(map(str, range(ROWS))), "sudoku", None))
    z0 = reasoner.random_start(own.drive, scale=1.0, generator=generator)
    f, start = found = al.hook(Served(reasoner, 5), block="reasoner.L_level", inputs={"tokens": tokens, **z0}, names=["z_L", "z_H"])
    assert f.clock == "4 calls" and len(found.states["z_H"]) == 6
    z = start
    for _ in range(3):
        v = {name: torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for name, leaf in z.items()}
        for a, b in ((f(z), own(z)), (f.jvp(z, v), own.jvp(z, v)), (f.vjp(z, v), own.vjp(z, v)), (f.readout(z), own.readout(z))):
            assert set(a) == set(b)
            assert all(torch.allclose(a[name], b[name], rtol=1e-12, atol=1e-12) for name in a)
        z = f(z)
    assert all(torch.equal(start[name], z0[name]) for name in z0)


def test_a_hooked_model_has_fixed_points_and_a_spectrum() -> None:
    torch.manual_seed(0)
    model = hooked.PostResidual().double()
    f, z0 = al.hook(model, block="block", inputs=torch.randn(ROWS, hooked.FEATURES, dtype=torch.float64))
    fb = f.take(al.repeat_rows(ROWS, 2))
    points = al.find_fixed_points(
        fb, {name: leaf[al.repeat_rows(ROWS, 2)] for name, leaf in z0.items()}, method=al.by_newton_krylov, tol=1e-9, max_steps=60
    )
    assert points.converged.any()
    z = {name: leaf[points.converged] for name, leaf in points.states.items()}
    at = fb.take(points.row[points.converged])
    # The other route: z = norm(z + block(z, x)), by hand.
    moved = model.norm(z["z"] + model.block(z["z"], at.drive["x"]))
    torch.testing.assert_close(moved, z["z"], rtol=0, atol=1e-7)
    wanted = torch.func.vmap(torch.func.jacrev(lambda s, x: model.norm(s + model.block(s, x))))(z["z"], at.drive["x"])
    radius = torch.linalg.eigvals(wanted).abs().amax(-1)
    torch.testing.assert_close(al.spectrum(at, z, k=2).radius, radius, rtol=1e-6, atol=1e-9)


def test_a_dense_jacobian_passes_through_a_buffer_that_every_tick_makes_anew(generator: torch.Generator) -> None:
    class Fresh(hooked.Loop):
        def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
            both = torch.zeros(x.shape[0], 2, hooked.WIDTH, dtype=x.dtype)
            both[:, 0] = self.block(z, x)
            both[:, 1] = z
            return both.mean(1)

    model = Fresh().double()
    f, _ = al.hook(model, block="block", inputs=torch.randn(ROWS, hooked.FEATURES, dtype=torch.float64))
    z = {"z": torch.randn(ROWS, hooked.WIDTH, generator=generator, dtype=torch.float64)}
    al.check_map(f, z, generator=generator)
    jacobian = al.dense_jacobian(f, z)
    wanted = torch.func.vmap(torch.func.jacrev(lambda s, x: 0.5 * (s + model.block(s, x))))(z["z"], f.drive["x"])
    torch.testing.assert_close(jacobian, wanted)


def test_a_random_start_is_the_one_that_was_drawn() -> None:
    class Drawn(hooked.Loop):
        def begin(self, x: Tensor) -> Tensor:
            return torch.randn(x.shape[0], hooked.WIDTH)

        def turn(self, z: Tensor, x: Tensor, t: int) -> Tensor:
            return self.block(z, x)

    torch.manual_seed(5)
    wanted = torch.randn(ROWS, hooked.WIDTH)
    model, x = Drawn(), torch.randn(ROWS, hooked.FEATURES)
    torch.manual_seed(5)
    assert torch.equal(al.hook(model, block="block", inputs=x).start["z"], wanted)


def test_one_row_and_two_rows_will_do(generator: torch.Generator) -> None:
    for rows in (1, 2):
        f, z0 = al.hook(hooked.Heads(), block="block", inputs=torch.randn(rows, hooked.FEATURES))
        al.check_map(f, {name: torch.randn(leaf.shape, generator=generator) for name, leaf in z0.items()}, generator=generator)
        assert f.take([0] * 5)({"input": z0["input"][[0] * 5]})["input"].shape[0] == 5


def test_two_turns_are_enough() -> None:
    torch.manual_seed(0)
    x = torch.randn(ROWS, hooked.FEATURES)
    for make in (hooked.ByKeyword, hooked.Added, hooked.AddedInPlace, hooked.Indexed, hooked.PostResidual, hooked.PreNorm, hooked.NoGrad):
        model = make(2)
        f, z0 = found = al.hook(model, block="block", inputs=x)
        assert list(z0) == ["z"] and len(found.states["z"]) == 3
        assert torch.equal(f.readout(f(f(z0)))["output"], model(x))
    for h_cycles, l_cycles, tied, clock in (
        (2, 2, False, "2 calls"),
        (2, 2, True, "3 calls"),
        (2, 1, False, "call"),
        (1, 3, False, "call"),
    ):
        model = hooked.TwoLevels(tied, h_cycles, l_cycles)
        f, z0 = found = al.hook(model, block="l_level", inputs=x)
        # One cycle of the higher level is no loop of it: what it holds then drives the lower level.
        assert f.clock == clock and len(z0) == (1 if h_cycles == 1 else 2)
        if h_cycles > 1:
            assert torch.equal(f.readout(f(f(z0)))["0"], model(x)[0])
