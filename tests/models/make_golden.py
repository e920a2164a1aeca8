"""Makes golden.safetensors: what the independent evaluation computes on small models whose weights are a formula.

Run as `python -m tests.models.make_golden` from the repository's root.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from tests.models import made
from tests.models.independent import Independent, rotary

PATH = Path(__file__).with_name("golden.safetensors")
SEGMENTS, ROWS = 3, 1
SHAPES = {
    "eqr_mlp": ("eqr", {"width": 8, "sites": 6, "mixer": "mlp", "blocks": 2}, {"H_cycles": 2, "L_cycles": 3, "lambda_": 0.95}),
    "eqr_attention": ("eqr", {"width": 8, "sites": 5, "prefix": 16}, {"H_cycles": 1, "L_cycles": 4, "lambda_": 0.9, "num_heads": 2, "puzzle_emb_len": 16}),
    "trm_mlp": ("trm", {"width": 8, "sites": 6, "prefix": 3, "mixer": "mlp"}, {"H_cycles": 3, "L_cycles": 2, "puzzle_emb_len": 3}),
    "trm_attention": ("trm", {"width": 12, "sites": 6, "prefix": 2, "blocks": 2}, {"H_cycles": 2, "L_cycles": 2, "num_heads": 3, "puzzle_emb_len": 2}),
    "hrm": ("hrm", {"width": 8, "sites": 6, "prefix": 1, "blocks": 1, "H_blocks": 2}, {"H_cycles": 2, "L_cycles": 2, "num_heads": 2}),
}


def weights_of(name):
    """A state dict under the published names."""
    kind, shape, _ = SHAPES[name]
    return made.state_dict(kind, **shape)


def computed(name):
    """Inputs and expected values of one model, in float64."""
    kind, shape, said = SHAPES[name]
    width, prefix, sites = shape["width"], shape.get("prefix", 0), shape["sites"]
    tokens, heads = prefix + sites, said.get("num_heads", 1)
    tables = rotary(tokens, width // heads, 10000.0)
    model = Independent(
        {key: tensor.numpy() for key, tensor in weights_of(name).items()},
        kind=kind,
        heads=heads,
        H_cycles=said["H_cycles"],
        L_cycles=said["L_cycles"],
        prefix=prefix,
        lambda_=said.get("lambda_", 1.0),
        tables=tables,
    )
    inputs = (np.arange(ROWS * sites).reshape(ROWS, sites) * 3) % 7
    z_H, z_L = (made.numbers(f"{name} {leaf}", (ROWS, tokens, width), 1.0).double().numpy() for leaf in ("z_H", "z_L"))
    found = {"inputs": inputs, "cos": tables[0], "sin": tables[1], "z0_H": z_H, "z0_L": z_L}
    x, states = model.x(inputs), []
    for segment in range(SEGMENTS):
        z_H, z_L, seen = model.segment(z_H, z_L, x)
        states.append((z_H, z_L, model.logits(z_H), model.halting(z_H)))
        if segment == 0:
            found |= {"sub_L": np.stack(seen["z_L"]), "sub_H": np.stack(seen["z_H"])}
    found |= {key: np.stack(values) for key, values in zip(("z_H", "z_L", "logits", "halting"), zip(*states, strict=True), strict=True)}
    return {f"{name}.{key}": torch.from_numpy(np.ascontiguousarray(value)) for key, value in found.items()}


if __name__ == "__main__":
    save_file({key: value for name in SHAPES for key, value in computed(name).items()}, PATH)
    print(f"{PATH}: {PATH.stat().st_size} bytes")
