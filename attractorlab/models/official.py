"""Files that the published trainers of EqR, TRM and HRM write.

| file | what it is | weights taken | configuration from |
|---|---|---|---|
| EqR `step_N_ID.pth`, `eqr.pth` | a dict with `model`, `ema`, `config`, `carry`, ... | `ema["shadow"]` over `model` | the file, else all_config.yaml |
| TRM `step_N` | a bare state dict | as they are: an averaged run saves the average itself | all_config.yaml |
| HRM `step_N` | a bare state dict | as they are | all_config.yaml |

all_config.yaml lies beside the file or one folder above it. Key prefixes `_orig_mod.`, `module.`, `model.` and `inner.` are dropped in any combination.
Shapes tell the vocabulary, width, number of blocks, mixer, inner widths and, with an MLP mixer, the number of tokens; a training file of EqR also tells its
board by the batch in its `carry`. `puzzle_emb.weights` become the prefix: its numbers fill the first prefix tokens, zeros the others. What neither says is asked for by name.
EqR files hold no `H_init` and `L_init`, which only fixed starts use: zeros stand in. bfloat16 tensors are cast up to float32,
and so is the computation: published runs that set `forward_dtype: bfloat16` round every update, ours do not.
"""

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attractorlab.models.eqr import EqRConfig
from attractorlab.models.hrm import HRMConfig
from attractorlab.models.layers import inner_width
from attractorlab.models.plain_yaml import read_yaml
from attractorlab.models.trm import TRMConfig
from attractorlab.models.unpickling import Archive, CheckpointError, mapping_of, read_archive, tensor_of

CONFIG = "all_config.yaml"
WRAPPERS = ("_orig_mod", "module", "model", "inner")
MODULES = {"eqr": "eqr", "trm": "trm", "hrm": "hrm", "hrm_act_v1": "hrm"}  # module of a configured model: which of ours it is
BUFFERS = ("H_init", "L_init", "puzzle_emb.weights")  # not among the averaged weights
# What follows from the configuration, or belongs to a training batch; published models do not save it, copies of them may.
FOLLOWS = ("rotary_emb.cos_cached", "rotary_emb.sin_cached", "puzzle_emb.local_weights", "puzzle_emb.local_ids")
POSITIONS = {"rope": "rotary", "none": "none"}
SUDOKU, MAZE = 11, 6  # published vocabularies
BOARDS = {SUDOKU: 81, MAZE: 900}
LONGEST_PREFIX = 16  # published
LISTED = 8  # keys that a message lists

Configuration = EqRConfig | TRMConfig | HRMConfig


@dataclass(frozen=True)
class Given:
    """What a caller says of an official file. None: the file is to say it.

    Args:
        kind: "eqr", "trm" or "hrm".
        task: The task whose instances the model takes, e.g. "sudoku-9" or "maze-30".
        sites: Tokens of an instance, the prefix not counted.
        prefix: Tokens before those of the instance.
        heads: Attention heads.
        positions: "rotary" or "none", for attention.
        H_cycles: Recursions in a segment.
        L_cycles: Updates of z_L in a recursion.
        damping: The weight that an EqR's old state keeps; 1 − `lambda_`.
        start_scale: Standard deviation of an EqR's random starts.
        identifier: Which puzzle embedding to take where the file holds several.
    """

    kind: str | None = None
    task: str | None = None
    sites: int | None = None
    prefix: int | None = None
    heads: int | None = None
    positions: str | None = None
    H_cycles: int | None = None
    L_cycles: int | None = None
    damping: float | None = None
    start_scale: float | None = None
    identifier: int | None = None


@dataclass(frozen=True, eq=False)
class Official:
    """An official file, understood: which model, its configuration, its tensors under our names, and what the file is."""

    kind: str
    config: Configuration
    tensors: Mapping[str, Tensor]
    name: str
    about: Mapping[str, str]


def read_official(path: Path, given: Given) -> Official:
    """The model in a file of the published trainers.

    Raises:
        CheckpointError: If the file is damaged, holds another model, or contradicts itself, its configuration or `given`.
        ValueError: If neither the file nor `given` says what is needed; each is named.
    """
    archive = read_archive(path)
    top = mapping_of(archive.holds) or {}
    tensors, averaged = _weights(archive, top)
    whole = _configuration(path, top)
    facts = _Facts(path, given, dict(mapping_of(whole.get("arch")) or {}), bool(whole))
    config = _config(facts, tensors, top, archive)
    if "puzzle_emb.weights" in tensors:
        _two(path, tensors, "puzzle_emb.weights")
        tensors["prefix"] = _prefix(facts, tensors.pop("puzzle_emb.weights"), config)
    kind = facts.kind
    if kind == "eqr":
        tensors = {name: torch.zeros(config.width) for name in ("H_init", "L_init")} | tensors
    run = whole.get("run_name")
    about = {"source": path.name, "source_sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16], "weights_from": "ema" if averaged else "model"}
    return Official(kind, config, tensors, run if isinstance(run, str) and run else path.stem, about)


def own_name(key: str) -> str:
    """A key of an official state dict without the wrappers around the model.

    Example:
        >>> own_name("_orig_mod.model.inner.L_level.layers.0._orig_mod.mlp.down_proj.weight")
        'L_level.layers.0.mlp.down_proj.weight'
    """
    parts = [part for part in key.split(".") if part != "_orig_mod"]
    while parts and parts[0] in WRAPPERS:
        parts = parts[1:]
    return ".".join(parts)


def refuse_other_tensors(path: Path, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    """Raise a CheckpointError, with the keys, unless names and shapes are those that the model has."""
    missing, extra = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    if missing or extra:
        near = {name: difflib.get_close_matches(name, missing, n=1) for name in extra}
        said = [f"{name} (near {near[name][0]})" if near[name] else name for name in extra]
        raise CheckpointError(
            f"{path} lacks {_listed(missing)} and has in excess {_listed(said)}. A file holds the tensors of its model, all of them and no others. "
            "Give the file as the trainer wrote it, with the configuration of that training beside it."
        )
    wrong = [f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}" for name in sorted(wanted) if given[name].shape != wanted[name].shape]
    if wrong:
        raise CheckpointError(
            f"{path} has shapes that contradict each other: {_listed(wrong)}. Vocabulary and width are read off embed_tokens, tokens off mlp_t, and the rest follows. "
            "Give the file as the trainer wrote it, with the configuration of that training beside it."
        )


class _Facts:
    """What the caller and the configuration say, and what neither does."""

    def __init__(self, path: Path, given: Given, arch: Mapping[str, Any], configured: bool) -> None:
        self.path, self.given, self.arch, self.configured = path, given, arch, configured
        self.kind = ""
        self.asked: list[str] = []

    def agree(self, name: str, *values: Any) -> Any:
        """The one value that everybody who knows `name` says; it is asked for if nobody knows."""
        said = [value for value in values if value is not None]
        if not said:
            self.asked.append(name)
            return None
        if any(value != said[0] for value in said):
            raise CheckpointError(
                f"{self.path} is said to have {name}={said[0]!r} and {name}={next(value for value in said if value != said[0])!r}. "
                f"The caller, the configuration and the tensors agree. Leave out {name}=, or use the configuration of this training."
            )
        return said[0]

    def told(self, key: str, kind: type) -> Any:
        """The value of a key of the configuration; None if it does not say."""
        value = self.arch.get(key)
        if value is None:
            return None
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            raise CheckpointError(
                f"The configuration of {self.path} says {key}: {value!r}. It is of type {kind.__name__}. Use the configuration that the trainer wrote."
            )
        return value

    def require(self) -> None:
        """Raise a ValueError that asks for everything that nobody knows."""
        if self.asked:
            where = "The configuration found does not say it" if self.configured else f"There is no {CONFIG} beside it or one folder above"
            raise ValueError(
                f"`load` cannot tell {', '.join(self.asked)} of {self.path}. {where}, and the tensors do not fix it. "
                f"Pass {', '.join(f'{name}=...' for name in self.asked)} to `load`, or the options of the same names to `attractorlab convert`."
            )


def _weights(archive: Archive, top: Mapping[str, Any]) -> tuple[dict[str, Tensor], bool]:
    """The tensors under the names of the model alone, averaged ones where there are any."""
    container = mapping_of(top.get("model"))
    tensors = _named(archive, top if container is None else container)
    if "embed_tokens.embedding_weight" not in tensors or not any(name.startswith("L_level.layers.0.") for name in tensors):
        raise CheckpointError(
            f"{archive.path} holds {len(tensors)} tensors of another kind of model: {_listed(sorted(tensors) or sorted(top))}. "
            "A file of EqR, TRM or HRM has embed_tokens.embedding_weight and L_level.layers.0. Give such a file."
        )
    if container is None or top.get("ema") is None:
        return _floats(archive.path, tensors), False
    shadow = _named(archive, mapping_of((mapping_of(top["ema"]) or {}).get("shadow")) or {})
    parameters = tensors.keys() - set(BUFFERS)
    if shadow.keys() - tensors.keys() or parameters - shadow.keys():
        raise CheckpointError(
            f"{archive.path} averages other weights than it has: {_listed(sorted(shadow.keys() ^ parameters))}. Every weight has its average. "
            "Give the file as the trainer wrote it."
        )
    return _floats(archive.path, tensors | shadow), True


def _named(archive: Archive, holds: Mapping[str, Any]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for key, value in holds.items():
        name, tensor = own_name(key), tensor_of(archive, value)
        if tensor is None or name in FOLLOWS:
            continue
        if name in found:
            raise CheckpointError(f"{archive.path} has {name} twice, the second time as {key}. A tensor has one name. Give the file as the trainer wrote it.")
        found[name] = tensor
    return found


def _floats(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors in float32, where they are numbers of that kind."""
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or not tensor.dtype.is_floating_point or tensor.is_quantized:
            kind = f"{str(tensor.dtype).removeprefix('torch.')}, {str(tensor.layout).removeprefix('torch.')} on {tensor.device}"
            raise CheckpointError(f"{path} has {name} as {kind}. Weights are dense floating-point numbers. Save the model before it was quantised, made sparse or moved.")
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def _configuration(path: Path, top: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration in the file, else that beside it or one folder above; empty if there is none."""
    own = mapping_of(top.get("config"))
    if own and mapping_of(own.get("arch")):
        return own
    for folder in (path.parent, path.absolute().parent.parent):
        if (folder / CONFIG).is_file():
            found = read_yaml(folder / CONFIG)
            if not isinstance(found, dict) or not isinstance(found.get("arch"), dict):
                raise CheckpointError(f"{folder / CONFIG} has no section `arch`. The trainer writes the model's shape there. Copy it again, or take it away and pass what is asked for.")
            return found
    return {}


def _config(facts: _Facts, tensors: Mapping[str, Tensor], top: Mapping[str, Any], archive: Archive) -> Configuration:
    given = facts.given
    vocabulary, width = _two(facts.path, tensors, "embed_tokens.embedding_weight")
    H_blocks, L_blocks = (len({name.split(".")[2] for name in tensors if name.startswith(f"{level}.layers.")}) for level in ("H_level", "L_level"))
    kinds = {one: any(f".{one}." in name for name in tensors) for one in ("mlp_t", "self_attn")}
    if kinds["mlp_t"] == kinds["self_attn"]:
        raise CheckpointError(f"{facts.path} mixes tokens by {'both mlp_t and self_attn' if kinds['mlp_t'] else 'neither mlp_t nor self_attn'}. A model has one of them. Give a file of EqR, TRM or HRM.")
    mixer = "mlp" if kinds["mlp_t"] else "attention"
    kind = _kind(facts, H_blocks > 0, "model" in top)
    told = facts.told("mlp_t", bool)
    facts.agree("mixer", mixer, None if told is None else "mlp" if told else "attention")
    facts.agree("width", width, facts.told("hidden_size", int))
    facts.agree("blocks", L_blocks, facts.told("L_layers", int))
    if kind == "hrm":
        facts.agree("H_blocks", H_blocks, facts.told("H_layers", int))
    if facts.told("rms_norm_eps", float) not in (None, 1e-5):
        raise CheckpointError(f"The configuration of {facts.path} says rms_norm_eps: {facts.arch['rms_norm_eps']}. The published layers use 1e-5. Such a model is not read.")
    tokens = _two(facts.path, tensors, "L_level.layers.0.mlp_t.gate_up_proj.weight")[1] if mixer == "mlp" else None
    carried, board = _carried(archive, top)
    prefix, sites = _lengths(facts, tensors, width=width, vocabulary=vocabulary, tokens=tokens or carried, board=board)
    task = {(SUDOKU, BOARDS[SUDOKU]): "sudoku-9"}.get((vocabulary, sites or 0)) or (f"maze-{round((sites or BOARDS[MAZE]) ** 0.5)}" if vocabulary == MAZE else None)
    positions = _positions(facts) if mixer == "attention" else "rotary"
    heads = facts.told("num_heads", int)
    shape: dict[str, Any] = {
        "task": given.task if given.task is not None else facts.agree("task", task),
        "sites": sites,
        "vocabulary": vocabulary,
        "width": width,
        "mixer": mixer,
        "heads": facts.agree("heads", given.heads, heads, None if mixer == "attention" or heads or given.heads else 1),
        "expansion": _expansion(facts, tensors, width=width, tokens=tokens),
        "H_cycles": facts.agree("H_cycles", given.H_cycles, facts.told("H_cycles", int)),
        "L_cycles": facts.agree("L_cycles", given.L_cycles, facts.told("L_cycles", int)),
        "prefix": prefix,
        "positions": positions,
        "rotary_base": facts.told("rope_theta", float) or 10000.0,
    }
    if kind == "eqr":
        stay = facts.told("lambda_", float)
        shape["damping"] = facts.agree("damping", given.damping, None if stay is None else round(1 - stay, 12))
        scales = (facts.told("H_init_std", float), facts.told("L_init_std", float))
        shape["start_scale"] = given.start_scale if given.start_scale is not None else facts.agree("start_scale", *scales, None if any(scales) else 1.0)
    facts.require()
    try:
        if kind == "hrm":
            return HRMConfig(**shape, H_blocks=H_blocks, L_blocks=L_blocks)
        return EqRConfig(**shape, blocks=L_blocks) if kind == "eqr" else TRMConfig(**shape, blocks=L_blocks)
    except ValueError as error:
        raise CheckpointError(f"{facts.path} is of a shape that cannot be built: {error}") from None


def _kind(facts: _Facts, two_stacks: bool, container: bool) -> str:
    told = None
    if facts.arch.get("name") is not None:
        module = str(facts.told("name", str)).partition("@")[0].rpartition(".")[2]
        if module not in MODULES:
            raise CheckpointError(
                f"The configuration of {facts.path} names the model {facts.arch['name']!r}. {', '.join(sorted(set(MODULES)))} are read; variants compute another map. "
                "Write an AbstractReasoner for it."
            )
        told = MODULES[module]
    by_keys = "hrm" if two_stacks else "eqr" if container and told is None and facts.given.kind is None else None
    if facts.given.kind not in (None, *MODULES.values()):
        raise ValueError(f"`load` got kind={facts.given.kind!r}. Official files hold one of eqr, trm, hrm. Use kind='trm', or leave it out.")
    facts.kind = facts.agree("kind", facts.given.kind, told, by_keys) or ""
    if (facts.kind == "hrm") != two_stacks and facts.kind:
        raise CheckpointError(f"{facts.path} has {'two stacks' if two_stacks else 'one stack'} and is said to be {facts.kind!r}. Only HRM has H_level beside L_level. Use kind={'hrm' if two_stacks else 'trm'!r}.")
    return facts.kind


def _lengths(facts: _Facts, tensors: Mapping[str, Tensor], *, width: int, vocabulary: int, tokens: int | None, board: int | None) -> tuple[int | None, int | None]:
    """Tokens of the prefix and of an instance. Two of prefix, instance and both together are enough."""
    given, table, told = facts.given, tensors.get("puzzle_emb.weights"), facts.told("puzzle_emb_len", int)
    if table is None:
        told = 0
    elif told == 0 or (told is None and facts.kind == "hrm"):
        told = -(-_two(facts.path, tensors, "puzzle_emb.weights")[1] // width)
    prefix = facts.agree("prefix", given.prefix, told) if {given.prefix, told} != {None} else None
    sites = facts.agree("sites", given.sites, board) if {given.sites, board} != {None} else None
    if sites is None and tokens is not None and prefix is not None:
        sites = tokens - prefix
    if sites is None and vocabulary in BOARDS:
        usual = BOARDS[vocabulary]
        fits = facts.configured and vocabulary == SUDOKU if tokens is None else 0 <= tokens - usual <= LONGEST_PREFIX
        sites = usual if fits else None
    if prefix is None and sites is not None and tokens is not None:
        prefix = tokens - sites
    if tokens is not None and prefix is not None and sites is not None and prefix + sites != tokens:
        raise CheckpointError(
            f"{facts.path} mixes {tokens} tokens and is said to have {prefix} + {sites}. A state holds the prefix and the instance. "
            "Leave out sites= and prefix=, or correct them."
        )
    return facts.agree("prefix", prefix), facts.agree("sites", sites)


def _carried(archive: Archive, top: Mapping[str, Any]) -> tuple[int | None, int | None]:
    """Tokens of a state and of an instance in the batch that a training file carries along."""
    carry = mapping_of(top.get("carry")) or {}
    state = tensor_of(archive, (mapping_of(carry.get("inner_carry")) or {}).get("z_H"))
    inputs = tensor_of(archive, (mapping_of(carry.get("current_data")) or {}).get("inputs"))
    whole = state is not None and inputs is not None and state.ndim == 3 and inputs.ndim == 2
    return (state.shape[1], inputs.shape[1]) if whole and state is not None and inputs is not None else (None, None)


def _positions(facts: _Facts) -> Any:
    told = facts.told("pos_encodings", str)
    if told is not None and told not in POSITIONS:
        raise CheckpointError(f"The configuration of {facts.path} says pos_encodings: {told!r}. {', '.join(POSITIONS)} are read. Such a model is not read.")
    return facts.agree("positions", facts.given.positions, None if told is None else POSITIONS[told])


def _expansion(facts: _Facts, tensors: Mapping[str, Tensor], *, width: int, tokens: int | None) -> float:
    """An expansion that gives the inner widths of the file. All that do are the same model."""
    inner = [(width, _two(facts.path, tensors, "L_level.layers.0.mlp.gate_up_proj.weight")[0] // 2)]
    if tokens is not None:
        inner.append((tokens, _two(facts.path, tensors, "L_level.layers.0.mlp_t.gate_up_proj.weight")[0] // 2))
    tried = [facts.told("expansion", float) or 4.0, 4.0, *(1.5 * wide / max(1, n) for n, wide in inner)]
    return next((one for one in tried if 0 < one < 64 and all(inner_width(n, one) == wide for n, wide in inner)), 4.0)


def _prefix(facts: _Facts, table: Tensor, config: Configuration) -> Tensor:
    identifier = facts.given.identifier if facts.given.identifier is not None else 0 if len(table) == 1 else None
    if table.shape[1] > config.prefix * config.width:
        raise CheckpointError(
            f"{facts.path} has shapes that contradict each other: puzzle_emb.weights {tuple(table.shape)} for {config.prefix} prefix tokens of {config.width}. "
            "An embedding fits into the prefix. Give the file as the trainer wrote it, or correct prefix=."
        )
    if identifier is None or not 0 <= identifier < len(table):
        raise ValueError(
            f"`load` got identifier={identifier} for the {len(table)} puzzle embeddings in {facts.path}. A model of ours holds one of them. Pass identifier=0 to {len(table) - 1}."
        )
    values = torch.zeros(config.prefix * config.width)
    values[: table.shape[1]] = table[identifier]
    return values.unflatten(0, (config.prefix, config.width))


def _two(path: Path, tensors: Mapping[str, Tensor], name: str) -> tuple[int, int]:
    """The shape of a matrix that every such file has."""
    if name not in tensors or tensors[name].ndim != 2:
        raise CheckpointError(
            f"{path} has {'the shape ' + str(tuple(tensors[name].shape)) if name in tensors else 'nothing'} as {name}. It is a matrix, off which the model's shape is read. "
            "Give the file as the trainer wrote it."
        )
    return tensors[name].shape[0], tensors[name].shape[1]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more or "nothing"
