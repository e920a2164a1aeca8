"""Official files of our own making, of any size: state dicts under the published names, and the containers around them."""

import sys
import types

import numpy as np
import torch
import yaml

PREFIX = "_orig_mod.model.inner."


def numbers(name, shape, scale):
    """Numbers of standard deviation `scale` that depend on the name and the shape alone: whole-number arithmetic, the same bits on every machine."""
    seed = sum(ord(letter) * (k + 1) for k, letter in enumerate(name))
    with np.errstate(over="ignore"):
        mixed = (np.arange(np.prod(shape), dtype=np.uint64) + np.uint64(seed) * np.uint64(1_000_003)) * np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    even = (mixed >> np.uint64(40)).astype(np.float64) / 2**23 - 1
    return torch.from_numpy(even.reshape(shape) * (scale * np.sqrt(3.0))).to(torch.float32)


def inner(n):
    return -(-round(4 * n * 2 / 3) // 256) * 256


def state_dict(kind, *, width, sites, prefix=0, vocabulary=7, mixer="attention", blocks=1, H_blocks=1, half=None, puzzle=None):
    """A state dict under the published names. `half`: the dtype of H_init and L_init; `puzzle`: length of the puzzle embedding."""
    tokens = prefix + sites
    made = {}

    def matrix(name, rows, columns):
        made[name] = numbers(name, (rows, columns), 1 / np.sqrt(columns))

    if kind != "eqr":
        made |= {name: numbers(name, (width,), 1.0).to(half or torch.float32) for name in ("H_init", "L_init")}
    matrix("embed_tokens.embedding_weight", vocabulary, width)
    matrix("lm_head.weight", vocabulary, width)
    matrix("q_head.weight", 2, width)
    made["q_head.bias"] = numbers("q_head.bias", (2,), 1.0)
    if prefix:
        made["puzzle_emb.weights"] = numbers("puzzle_emb.weights", (1, puzzle or width), 0.3)
    for level, count in (("H_level", H_blocks if kind == "hrm" else 0), ("L_level", blocks)):
        for k in range(count):
            name = f"{level}.layers.{k}"
            if mixer == "mlp":
                matrix(f"{name}.mlp_t.gate_up_proj.weight", 2 * inner(tokens), tokens)
                matrix(f"{name}.mlp_t.down_proj.weight", tokens, inner(tokens))
            else:
                matrix(f"{name}.self_attn.qkv_proj.weight", 3 * width, width)
                matrix(f"{name}.self_attn.o_proj.weight", width, width)
            matrix(f"{name}.mlp.gate_up_proj.weight", 2 * inner(width), width)
            matrix(f"{name}.mlp.down_proj.weight", width, inner(width))
    return made


NAMES = {"eqr": "eqr@EqRModel", "trm": "recursive_reasoning.trm@TinyRecursiveReasoningModel_ACTV1", "hrm": "hrm.hrm_act_v1@HierarchicalReasoningModel_ACTV1"}


def arch(kind, **settings):
    """The section `arch` of a configuration."""
    return {"name": NAMES[kind], "loss": {"name": "losses@ACTLossHead"}, "halt_max_steps": 16, "expansion": 4, "pos_encodings": "rope", **settings}


def write_raw(path, weights, settings=None, *, prefix=PREFIX):
    """What the trainers of TRM and HRM write, with the configuration beside it if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({prefix + name: tensor for name, tensor in weights.items()}, path)
    if settings is not None:
        (path.parent / "all_config.yaml").write_text(yaml.dump({"arch": settings, "run_name": "a run", "seed": 0}))
    return path


def write_training(path, weights, settings=None, *, rows=2, sites=4, prefix=PREFIX, classes=True, shadow=True):
    """What the trainer of EqR writes. With `classes`, the carry is of classes that no longer exist when the file is read, and numpy arrays stand beside it."""
    raw = {prefix + name: tensor + 0.5 if tensor.dtype == torch.float32 else tensor for name, tensor in weights.items()}
    average = {prefix + name: tensor for name, tensor in weights.items() if name not in ("H_init", "L_init", "puzzle_emb.weights")}
    raw |= {prefix + name: weights[name] for name in ("puzzle_emb.weights",) if name in weights}
    width = weights["embed_tokens.embedding_weight"].shape[1]
    tokens = sites + (16 if "puzzle_emb.weights" in weights else 0)
    latent = {"z_H": torch.zeros(rows, tokens, width, dtype=torch.bfloat16), "z_L": torch.zeros(rows, tokens, width, dtype=torch.bfloat16)}
    fields = {"steps": torch.zeros(rows, dtype=torch.int32), "halted": torch.ones(rows, dtype=torch.bool), "current_data": {"inputs": torch.ones(rows, sites, dtype=torch.int32)}}
    module = types.ModuleType("models.gone")
    for name in ("ModelCarry", "LatentCarry"):
        setattr(module, name, type(name, (), {"__module__": "models.gone"}))
    sys.modules |= {"models": types.ModuleType("models"), "models.gone": module}
    try:
        if classes:
            inside = module.LatentCarry()
            inside.__dict__.update(latent)
            carry = module.ModelCarry()
            carry.__dict__.update(inner_carry=inside, **fields)
        else:
            carry = {"inner_carry": latent, **fields}
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "step": 100,
            "model": _ordered(raw),
            "optimizers": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]}],
            "carry": carry,
            "numpy": ("MT19937", np.arange(624, dtype=np.uint32) if classes else list(range(624)), 5, 0, 0.0),
            "train_dataset": {"order": np.arange(6).reshape(2, 3), "mean": np.float64(0.5)} if classes else {},
            "config": {} if settings is None else {"arch": settings, "run_name": "a run"},
            "ema": {"mu": 0.999, "shadow": average} if shadow else None,
        }
        torch.save(content, path)
    finally:
        del sys.modules["models.gone"], sys.modules["models"]
    return path


def _ordered(weights):
    """As `state_dict()` gives it: an ordered dict with versions in an attribute."""
    module = torch.nn.Module()
    made = module.state_dict()
    made.update(weights)
    return made
