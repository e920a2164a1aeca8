"""A second evaluation of EqR, TRM and HRM: numpy, float64, written from the published description and from no code of the package.

It takes a state dict under the published names, without prefixes, and knows no torch.
"""

import numpy as np


def rms(h, axis):
    return h / np.sqrt((h**2).mean(axis, keepdims=True) + 1e-5)


def swiglu(weights, name, h):
    both = h @ weights[f"{name}.gate_up_proj.weight"].T
    gate, up = np.split(both, 2, axis=-1)
    return (gate / (1 + np.exp(-gate)) * up) @ weights[f"{name}.down_proj.weight"].T


def rotary(tokens, head, base):
    """The tables are made in float32, as published."""
    exponent = np.arange(0, head, 2, dtype=np.float32) / np.float32(head)
    frequency = (np.float32(1) / np.float32(base) ** exponent).astype(np.float32)
    angle = np.outer(np.arange(tokens, dtype=np.float32), frequency).astype(np.float32)
    angle = np.concatenate([angle, angle], axis=1)
    return np.cos(angle).astype(np.float64), np.sin(angle).astype(np.float64)


def turned(h, cos, sin):
    half = h.shape[-1] // 2
    swapped = np.concatenate([-h[..., half:], h[..., :half]], axis=-1)
    return h * cos + swapped * sin


def attention(weights, name, h, heads, cos, sin):
    rows, tokens, width = h.shape
    mixed = (h @ weights[f"{name}.qkv_proj.weight"].T).reshape(rows, tokens, 3, heads, width // heads)
    query, key, value = (mixed[:, :, k].transpose(0, 2, 1, 3) for k in range(3))
    if cos is not None:
        query, key = turned(query, cos, sin), turned(key, cos, sin)
    score = query @ key.transpose(0, 1, 3, 2) / np.sqrt(width // heads)
    score = np.exp(score - score.max(-1, keepdims=True))
    score /= score.sum(-1, keepdims=True)
    return (score @ value).transpose(0, 2, 1, 3).reshape(rows, tokens, width) @ weights[f"{name}.o_proj.weight"].T


class Independent:
    """One model: `x`, `start`, and all that a segment computes."""

    def __init__(self, weights, *, kind, heads, H_cycles, L_cycles, prefix=0, positions="rope", lambda_=1.0, base=10000.0, tables=None):
        self.weights = {name: np.asarray(tensor, dtype=np.float64) for name, tensor in weights.items()}
        self.kind, self.heads, self.H_cycles, self.L_cycles, self.prefix, self.lambda_ = kind, heads, H_cycles, L_cycles, prefix, lambda_
        self.width = self.weights["embed_tokens.embedding_weight"].shape[1]
        self.positions, self.base, self.tables = positions, base, tables

    def x(self, ids):
        tokens = self.weights["embed_tokens.embedding_weight"][np.asarray(ids)]
        puzzle = np.zeros(self.prefix * self.width)
        if self.prefix:
            first = self.weights["puzzle_emb.weights"][0]
            puzzle[: len(first)] = first
        puzzle = np.broadcast_to(puzzle.reshape(self.prefix, self.width), (len(tokens), self.prefix, self.width))
        return np.sqrt(self.width) * np.concatenate([puzzle, tokens], axis=1)

    def stack(self, level, h):
        cos, sin = (None, None) if self.positions == "none" else self.tables or rotary(h.shape[1], self.width // self.heads, self.base)
        k = 0
        while f"{level}.layers.{k}.mlp.down_proj.weight" in self.weights:
            name = f"{level}.layers.{k}"
            if f"{name}.mlp_t.down_proj.weight" in self.weights:
                sideways = h.transpose(0, 2, 1)
                h = rms(sideways + swiglu(self.weights, f"{name}.mlp_t", sideways), -1).transpose(0, 2, 1)
            else:
                h = rms(h + attention(self.weights, f"{name}.self_attn", h, self.heads, cos, sin), -1)
            h = rms(h + swiglu(self.weights, f"{name}.mlp", h), -1)
            k += 1
        return h

    def update(self, level, h, injection):
        return (1 - self.lambda_) * h + self.lambda_ * self.stack(level, h + injection)

    def segment(self, z_H, z_L, x):
        """Both leaves after the segment, and every value of each after an update of it, in order."""
        H_level = "H_level" if self.kind == "hrm" else "L_level"
        seen = {"z_H": [], "z_L": []}
        for _ in range(self.H_cycles):
            for _ in range(self.L_cycles):
                z_L = self.update("L_level", z_L, z_H + x)
                seen["z_L"].append(z_L)
            z_H = self.update(H_level, z_H, z_L)
            seen["z_H"].append(z_H)
        return z_H, z_L, seen

    def logits(self, z_H):
        return z_H[:, self.prefix :] @ self.weights["lm_head.weight"].T

    def halting(self, z_H):
        return z_H[:, 0] @ self.weights["q_head.weight"].T + self.weights["q_head.bias"]
